"""Answer labelled questions for an evaluation. All questions about an image are answered together."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

from mpa_ray.config import AnswerConfig, SamplingConfig
from mpa_ray.engine.protocol import EncodedImage, Reply, Request, RequestRefused, VisionLanguageModel
from mpa_ray.imaging.decode import ImageProblem
from mpa_ray.records import LabelledQuestion, Prediction, Reason, State
from mpa_ray.stages.image_work import ImageWork, encode_work, first_alone, state_of
from mpa_ray.tasks.task import Task


@dataclass(frozen=True)
class Predict:
    """Ask a model labelled questions, with the same prompt as in identification and leveling."""

    model: VisionLanguageModel
    task: Task
    answer: AnswerConfig

    async def visit(self, work: ImageWork[LabelledQuestion]) -> list[Prediction]:
        """One prediction for each question about the image, in the order of the questions."""
        image = await encode_work(work, self.model)
        if isinstance(image, ImageProblem):
            return [_unanswered(question, state_of(image), image.reason, image.detail) for question in work.rows]
        return await first_alone([partial(self._predict, image, question) for question in work.rows])

    async def _predict(self, image: EncodedImage, question: LabelledQuestion) -> Prediction:
        sampling = SamplingConfig(max_new_tokens=self.answer.max_new_tokens)
        try:
            reply = await self.model.generate(image, Request(self.task.answer_prompt(question.question), sampling))
        except RequestRefused as refused:
            return _unanswered(question, refused.state, refused.reason, refused.detail)
        if reply.is_all_reasoning:
            unanswered = _unanswered(question, State.DROPPED, Reason.REASONING_TRUNCATED)
            return replace(unanswered, finish_reason=reply.finish_reason)
        return _prediction(question, State.KEPT, reply=reply)


def _unanswered(question: LabelledQuestion, state: State, reason: str, detail: str | None = None) -> Prediction:
    return _prediction(question, state, reason, detail)


def _prediction(
    question: LabelledQuestion,
    state: State,
    reason: str | None = None,
    detail: str | None = None,
    reply: Reply | None = None,
) -> Prediction:
    return Prediction(
        question_id=question.question_id,
        image_id=question.image_id,
        uri=question.uri,
        question=question.question,
        answers=question.answers,
        family=question.family,
        state=state.value,
        reason=None if reason is None else str(reason),
        detail=detail,
        prediction=reply.answer if reply else None,
        finish_reason=reply.finish_reason if reply else None,
        answer_type=question.answer_type,
        split=question.split,
    )
