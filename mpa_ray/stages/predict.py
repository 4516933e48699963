"""Evaluation's model pass: answer labelled questions, several on one image in a row."""

from __future__ import annotations

from dataclasses import dataclass

from mpa_ray.config import AnswerConfig, SamplingConfig
from mpa_ray.corpus.decode import ImageProblem
from mpa_ray.engine.protocol import RequestRefused, VisionLanguageModel
from mpa_ray.records import LabelledQuestion, Prediction
from mpa_ray.stages.shard import ImageWork, look_at
from mpa_ray.tasks.task import Task


@dataclass(frozen=True)
class Predict:
    """Put labelled questions to a model, with the prompt of identification and leveling."""

    model: VisionLanguageModel
    task: Task
    answer: AnswerConfig

    async def visit(self, work: ImageWork[LabelledQuestion]) -> list[Prediction]:
        """One prediction for each question on the image, in their order."""
        image = await look_at(work, self.model)
        if isinstance(image, ImageProblem):
            return [_prediction(question, None, f"{image.reason}: {image.detail}") for question in work.rows]
        predictions, sampling = [], SamplingConfig(max_new_tokens=self.answer.max_new_tokens)
        for question in work.rows:
            try:
                reply = await self.model.generate(image, self.task.answer_prompt(question.question), sampling)
                predictions.append(_prediction(question, reply.text, "truncated" if reply.truncated else None))
            except RequestRefused as refused:
                predictions.append(_prediction(question, None, f"{refused.reason}: {refused.detail}"))
        return predictions


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
    )
