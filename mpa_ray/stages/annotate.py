"""The Pseudo Annotator: one visit of the teacher to an image gives pairs and the teacher's second answers to them."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mpa_ray.config import AnnotateConfig, AnswerConfig, SamplingConfig
from mpa_ray.corpus.decode import ImageProblem
from mpa_ray.engine.protocol import JsonSchema, Reply, RequestRefused, SeenImage, VisionLanguageModel
from mpa_ray.records import Annotation, ImageRef, Reason, State
from mpa_ray.stages.shard import ImageWork, look_at, state_of
from mpa_ray.tasks.parser import QuestionAnswer, ReplyError, parse_reply
from mpa_ray.tasks.task import Task

PAIR: JsonSchema = {
    "type": "object",
    "properties": {
        # Bounded, since a weak model that cannot write its own way of ending a text never closes the string.
        "question": {"type": "string", "minLength": 1, "maxLength": 200},
        "answer": {"type": "string", "minLength": 1, "maxLength": 80},
    },
    "required": ["question", "answer"],
    "additionalProperties": False,
}
"""What a reply may be where replies are held to JSON."""


@dataclass(frozen=True)
class Annotate:
    """Have the teacher write questions with their answers, then answer each question afresh.

    All prompts on an image go to one engine back to back: the image and the preamble after it are in the KV cache from
    the second prompt on.
    """

    teacher: VisionLanguageModel
    task: Task
    config: AnnotateConfig
    answer: AnswerConfig

    async def visit(self, work: ImageWork[ImageRef]) -> list[Annotation]:
        """The image's rows of D_PA, one for each question asked for; never raises for a fault of image or reply."""
        image = await look_at(work, self.teacher)
        if isinstance(image, ImageProblem):
            return [_RowOf(work, 0).ended(state_of(image), image.reason, image.detail)]
        # The first alone: the others then find the image in the cache.
        draws = [await self._draw(image, 0)]
        draws += await asyncio.gather(*(self._draw(image, number) for number in range(1, self.config.num_questions)))
        pairs = _pairs(draws)
        return list(await asyncio.gather(*(
            self._second_pass(_RowOf(work, number), image, draw, pair)
            for number, (draw, pair) in enumerate(zip(draws, pairs, strict=True))
        )))  # fmt: skip

    async def _draw(self, image: SeenImage, number: int) -> Reply | RequestRefused:
        named = image.image_id if number == 0 else f"{image.image_id}#{number}"
        digest = hashlib.sha256(f"{self.config.sampling.seed}:{named}".encode()).digest()
        sampling = self.config.sampling.model_copy(update={"seed": int.from_bytes(digest[:4]) >> 1})
        try:
            if self.config.reply == "json":
                return await self.teacher.generate(image, self.task.annotation_prompt(as_json=True), sampling, PAIR)
            return await self.teacher.generate(image, self.task.annotation_prompt(), sampling)
        except RequestRefused as refused:
            return refused

    async def _second_pass(
        self, row: _RowOf, image: SeenImage, first: Reply | RequestRefused, pair: QuestionAnswer | str
    ) -> Annotation:
        if isinstance(first, RequestRefused):
            return row.ended(first.state, first.reason, first.detail)
        if isinstance(pair, str):
            return row.ended(State.DROPPED, pair, None, first)
        sampling = SamplingConfig(max_new_tokens=self.answer.max_new_tokens)
        try:
            second = await self.teacher.generate(image, self.task.answer_prompt(pair.question), sampling)
        except RequestRefused as refused:
            return row.ended(refused.state, refused.reason, refused.detail, first)
        return row.annotated(pair.question, pair.answer, first, second)


def _pairs(draws: Sequence[Reply | RequestRefused]) -> list[QuestionAnswer | str]:
    """Each draw's pair, or the reason why it has none; the same question again is none."""
    found: list[QuestionAnswer | str] = []
    asked: set[str] = set()
    for draw in draws:
        pair = _pair(draw)
        if isinstance(pair, QuestionAnswer):
            question = " ".join(pair.question.casefold().split())
            if question in asked:
                pair = Reason.REPEATED_QUESTION
            asked.add(question)
        found.append(pair)
    return found


def _pair(draw: Reply | RequestRefused) -> QuestionAnswer | str:
    if isinstance(draw, RequestRefused):
        return draw.reason
    if draw.truncated:
        return Reason.REPLY_TRUNCATED
    pairs = parse_reply(draw.text)
    return pairs if isinstance(pairs, ReplyError) else pairs[0]


@dataclass(frozen=True)
class _RowOf:
    """The beginning of an annotation, to be ended in one of its states."""

    work: ImageWork[ImageRef]
    number: int
    """Of the question on its image, from 0."""

    def ended(self, state: State, reason: str, detail: str | None, first: Reply | None = None) -> Annotation:
        return Annotation(
            **self._of_image(),
            state=state.value,
            reason=str(reason),
            detail=detail,
            duplicate_of=detail if reason == Reason.DUPLICATE_OF else None,
            reply=first.text if first else None,
            finish_reason=first.finish_reason if first else None,
            num_prompt_tokens=first.num_prompt_tokens if first else 0,
            num_output_tokens=first.num_output_tokens if first else 0,
            first_pass_s=first.elapsed_s if first else 0.0,
        )

    def annotated(self, question: str, answer: str, first: Reply, second: Reply) -> Annotation:
        state, reason = (
            (State.DROPPED, Reason.SECOND_ANSWER_TRUNCATED.value) if second.truncated else (State.KEPT, None)
        )
        return Annotation(
            **self._of_image(),
            state=state.value,
            reason=reason,
            question=question,
            answer=answer,
            second_answer=second.text,
            reply=first.text,
            finish_reason=first.finish_reason,
            second_finish_reason=second.finish_reason,
            mean_logprob=first.mean_logprob,
            second_mean_logprob=second.mean_logprob,
            num_prompt_tokens=first.num_prompt_tokens,
            num_output_tokens=first.num_output_tokens,
            num_second_prompt_tokens=second.num_prompt_tokens,
            num_second_cached_tokens=second.num_cached_tokens,
            num_second_output_tokens=second.num_output_tokens,
            num_uncached_image_tokens=second.num_uncached_image_tokens,
            first_pass_s=first.elapsed_s,
            second_pass_s=second.elapsed_s,
        )

    def _of_image(self) -> dict[str, Any]:
        (ref,) = self.work.rows
        return {
            "annotation_id": f"{ref.image_id}#{self.number}",
            "image_id": ref.image_id,
            "uri": ref.uri,
            "metadata": ref.metadata,
            "num_bytes": len(self.work.content) if isinstance(self.work.content, bytes) else None,
            "content_sha256": self.work.content_sha256,
            "attempts": self.work.attempts,
        }
