"""The Pseudo Annotator: one visit of the teacher to an image gives pairs and the teacher's second answers to them."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from mpa_ray.config import AnnotateConfig, AnswerConfig, SamplingConfig
from mpa_ray.engine.protocol import EncodedImage, JsonSchema, Reply, Request, RequestRefused, VisionLanguageModel
from mpa_ray.imaging.decode import ImageProblem
from mpa_ray.matching import MATCHERS
from mpa_ray.records import Annotation, ImageRef, Reason, State
from mpa_ray.stages.image_work import ImageWork, encode_work, first_alone, state_of
from mpa_ray.tasks.parser import QuestionAnswer
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
        image = await encode_work(work, self.teacher)
        if isinstance(image, ImageProblem):
            return [_RowOf(work, 0).ended(state_of(image), image.reason, image.detail)]
        draws = await first_alone([partial(self._draw, image, number) for number in range(self.config.num_questions)])
        pairs = _pairs(draws, self.task)
        return list(
            await asyncio.gather(
                *(
                    self._second_pass(_RowOf(work, number), image, draw, pair)
                    for number, (draw, pair) in enumerate(zip(draws, pairs, strict=True))
                )
            )
        )

    async def _draw(self, image: EncodedImage, number: int) -> Reply | RequestRefused:
        as_json = self.config.reply == "json"
        request = Request(
            self.task.annotation_prompt(as_json),
            self._drawn(image.image_id if number == 0 else f"{image.image_id}#{number}"),
            schema=PAIR if as_json else None,
        )
        try:
            return await self.teacher.generate(image, request)
        except RequestRefused as refused:
            return refused

    async def _second_pass(
        self, row: _RowOf, image: EncodedImage, first: Reply | RequestRefused, pair: QuestionAnswer | str
    ) -> Annotation:
        if isinstance(first, RequestRefused):
            return row.ended(first.state, first.reason, first.detail)
        if isinstance(pair, str):
            return row.ended(State.DROPPED, pair, None, first)
        try:
            seconds = await self._second_answers(row, image, self.task.answer_prompt(pair.question))
        except RequestRefused as refused:
            return row.ended(refused.state, refused.reason, refused.detail, first)
        return row.annotated(pair.question, pair.answer, first, seconds)

    async def _second_answers(self, row: _RowOf, image: EncodedImage, prompt: str) -> list[Reply]:
        asked, limit = self.config.num_second_answers, self.answer.max_new_tokens
        if asked == 1:
            return [await self.teacher.generate(image, Request(prompt, SamplingConfig(max_new_tokens=limit)))]
        requests = (Request(prompt, self._drawn(f"{row.annotation_id}?{number}", limit)) for number in range(asked))
        return list(await asyncio.gather(*(self.teacher.generate(image, request) for request in requests)))

    def _drawn(self, name: str, max_new_tokens: int | None = None) -> SamplingConfig:
        """How a reply is drawn, with a seed of its own by its name."""
        drawn = self.config.sampling
        digest = hashlib.sha256(f"{drawn.seed}:{name}".encode()).digest()
        limit = max_new_tokens or drawn.max_new_tokens
        return drawn.model_copy(update={"seed": int.from_bytes(digest[:4]) >> 1, "max_new_tokens": limit})


def _pairs(draws: Sequence[Reply | RequestRefused], task: Task) -> list[QuestionAnswer | str]:
    """Each draw's pair, or the reason why it has none; the same question again is none."""
    found: list[QuestionAnswer | str] = []
    asked: set[str] = set()
    for draw in draws:
        pair = _pair(draw, task)
        if isinstance(pair, QuestionAnswer):
            question = " ".join(pair.question.casefold().split())
            if question in asked:
                pair = Reason.REPEATED_QUESTION
            asked.add(question)
        found.append(pair)
    return found


def most_frequent(replies: Sequence[Reply]) -> tuple[Reply, float]:
    """The first reply of the largest group of equal ones, and that group's share; cut off replies have no vote."""
    equal = MATCHERS["exact"]
    groups: list[list[Reply]] = []
    for reply in replies:
        if reply.truncated:
            continue
        group = next((group for group in groups if equal(group[0].text, reply.text)), None)
        if group is None:
            groups.append([reply])
        else:
            group.append(reply)
    if not groups:
        return replies[0], 0.0
    # `max` takes the first of several that are as large.
    largest = max(groups, key=len)
    return largest[0], len(largest) / len(replies)


def _pair(draw: Reply | RequestRefused, task: Task) -> QuestionAnswer | str:
    if isinstance(draw, RequestRefused):
        return draw.reason
    return Reason.REPLY_TRUNCATED if draw.truncated else task.pair_in(draw.text)


@dataclass(frozen=True)
class _RowOf:
    """The beginning of an annotation, to be ended in one of its states."""

    work: ImageWork[ImageRef]
    number: int
    """Of the question on its image, from 0."""

    @property
    def annotation_id(self) -> str:
        return f"{self.work.image_id}#{self.number}"

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

    def annotated(self, question: str, answer: str, first: Reply, seconds: Sequence[Reply]) -> Annotation:
        second, share = most_frequent(seconds)
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
            second_answer_share=share,
            reply=first.text,
            finish_reason=first.finish_reason,
            second_finish_reason=second.finish_reason,
            mean_logprob=first.mean_logprob,
            second_mean_logprob=second.mean_logprob,
            num_prompt_tokens=first.num_prompt_tokens,
            num_output_tokens=first.num_output_tokens,
            num_second_prompt_tokens=sum(reply.num_prompt_tokens for reply in seconds),
            num_second_cached_tokens=sum(reply.num_cached_tokens for reply in seconds),
            num_second_output_tokens=sum(reply.num_output_tokens for reply in seconds),
            num_uncached_image_tokens=sum(reply.num_uncached_image_tokens for reply in seconds),
            first_pass_s=first.elapsed_s,
            second_pass_s=sum(reply.elapsed_s for reply in seconds),
        )

    def _of_image(self) -> dict[str, Any]:
        (ref,) = self.work.rows
        return {
            "annotation_id": self.annotation_id,
            "image_id": ref.image_id,
            "uri": ref.uri,
            "metadata": ref.metadata,
            "num_bytes": len(self.work.content) if isinstance(self.work.content, bytes) else None,
            "content_sha256": self.work.content_sha256,
            "attempts": self.work.attempts,
        }
