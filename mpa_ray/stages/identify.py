"""The Parity Identifier: a student answers the teacher's questions, and each pair gets its verdict."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

from mpa_ray.config import AnswerConfig, SamplingConfig
from mpa_ray.engine.protocol import EncodedImage, Request, RequestRefused, VisionLanguageModel
from mpa_ray.imaging.decode import ImageProblem
from mpa_ray.matching import Matcher
from mpa_ray.records import Annotation, Verdict
from mpa_ray.stages.image_work import ImageWork, encode_work, first_alone, state_of
from mpa_ray.stages.judge import answered_without_answer, judge, not_answered, teacher_agrees
from mpa_ray.tasks.task import Task


@dataclass(frozen=True)
class WorthAsking:
    """Decides whether a student is asked the question of an annotation."""

    matches: Matcher
    where_teacher_disagrees: bool = False
    """Also ask the questions on which the teacher disagrees with itself."""

    def __call__(self, annotation: Annotation) -> bool:
        agrees = teacher_agrees(annotation, self.matches)
        return agrees is True or (agrees is False and self.where_teacher_disagrees)


@dataclass(frozen=True)
class Identify:
    """Judge every annotation, but ask the student only the questions that are worth asking."""

    student: VisionLanguageModel
    task: Task
    answer: AnswerConfig
    worth_asking: WorthAsking

    async def visit(self, work: ImageWork[Annotation]) -> list[Verdict]:
        """One verdict for each annotation of the image, in the order of the annotations.

        Raises:
            EngineDied: the student's engine can no longer serve requests.
        """
        if not any(map(self.worth_asking, work.rows)):
            return [self._judge_without_student(annotation) for annotation in work.rows]
        return [replace(verdict, attempts=work.attempts) for verdict in await self._verdicts(work)]

    async def _verdicts(self, work: ImageWork[Annotation]) -> list[Verdict]:
        image = await encode_work(work, self.student)
        if isinstance(image, ImageProblem):
            # The teacher read this image; it has been removed, replaced or damaged since.
            return [
                not_answered(row, state_of(image), image.reason, image.detail)
                if self.worth_asking(row)
                else self._judge_without_student(row)
                for row in work.rows
            ]
        questions = [annotation for annotation in work.rows if self.worth_asking(annotation)]
        verdicts = iter(await first_alone([partial(self._ask, image, annotation) for annotation in questions]))
        return [next(verdicts) if self.worth_asking(row) else self._judge_without_student(row) for row in work.rows]

    async def _ask(self, image: EncodedImage, annotation: Annotation) -> Verdict:
        prompt = self.task.answer_prompt(annotation.question or "")
        sampling = SamplingConfig(max_new_tokens=self.answer.max_new_tokens)
        try:
            reply = await self.student.generate(image, Request(prompt, sampling))
        except RequestRefused as refused:
            return not_answered(annotation, refused.state, refused.reason, refused.detail)
        if reply.is_all_reasoning:
            return answered_without_answer(annotation, reply)
        return judge(annotation, reply, self.worth_asking.matches)

    def _judge_without_student(self, annotation: Annotation) -> Verdict:
        return judge(annotation, None, self.worth_asking.matches)
