"""Evaluation's model pass: answer labelled questions, several on one image in a row."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from mpa_ray.config import AnswerConfig, SamplingConfig
from mpa_ray.engine.protocol import EncodedImage, Request, RequestRefused, VisionLanguageModel
from mpa_ray.imaging.decode import ImageProblem
from mpa_ray.records import LabelledQuestion, Prediction
from mpa_ray.stages.image_work import ImageWork, encode_work, first_alone
from mpa_ray.tasks.task import Task


@dataclass(frozen=True)
class Predict:
    """Put labelled questions to a model, with the prompt of identification and leveling."""

    model: VisionLanguageModel
    task: Task
    answer: AnswerConfig

    async def visit(self, work: ImageWork[LabelledQuestion]) -> list[Prediction]:
        """One prediction for each question on the image, in their order."""
        image = await encode_work(work, self.model)
        if isinstance(image, ImageProblem):
            return [_prediction(question, None, f"{image.reason}: {image.detail}") for question in work.rows]
        return await first_alone([partial(self._answered, image, question) for question in work.rows])

    async def _answered(self, image: EncodedImage, question: LabelledQuestion) -> Prediction:
        sampling = SamplingConfig(max_new_tokens=self.answer.max_new_tokens)
        try:
            reply = await self.model.generate(image, Request(self.task.answer_prompt(question.question), sampling))
        except RequestRefused as refused:
            return _prediction(question, None, f"{refused.reason}: {refused.detail}")
        return _prediction(question, reply.text, "truncated" if reply.truncated else None)


def _prediction(question: LabelledQuestion, text: str | None, reason: str | None) -> Prediction:
    return Prediction(
        question_id=question.question_id,
        image_id=question.image_id,
        uri=question.uri,
        question=question.question,
        answers=question.answers,
        family=question.family,
        prediction=text,
        reason=reason,
        answer_type=question.answer_type,
        split=question.split,
    )
