"""The Pseudo Annotator: the teacher writes question-answer pairs about an image, then answers each question again."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from mpa_ray.config import AnnotateConfig, AnswerConfig, SamplingConfig
from mpa_ray.engine.protocol import EncodedImage, JsonSchema, Reply, Request, RequestRefused, VisionLanguageModel
from mpa_ray.imaging.decode import ImageProblem
from mpa_ray.matching import MATCHERS
from mpa_ray.records import Annotation, ImageRef, Reason, State
from mpa_ray.stages.image_work import ImageWork, encode_work, first_alone, state_of
from mpa_ray.tasks.parser import QuestionAnswer
from mpa_ray.tasks.task import Task

PAIR_SCHEMA: JsonSchema = {
    "type": "object",
    "properties": {
        # The lengths are limited, since a weak model may never close a string.
        "question": {"type": "string", "minLength": 1, "maxLength": 200},
        "answer": {"type": "string", "minLength": 1, "maxLength": 80},
    },
    "required": ["question", "answer"],
    "additionalProperties": False,
}
"""The schema of annotation replies in JSON."""


@dataclass(frozen=True)
class Annotate:
    """The teacher writes question-answer pairs about an image, then answers each question again.

    All prompts about an image go to one engine in one visit. So from the second prompt on, the image and the preamble
    that follows the image are in the KV cache.
    """

    teacher: VisionLanguageModel
    task: Task
    config: AnnotateConfig
    answer: AnswerConfig

    async def visit(self, work: ImageWork[ImageRef]) -> list[Annotation]:
        """The image's rows of D_PA, one for each question. A faulty image or reply gives a row with a reason.

        Raises:
            EngineDied: the teacher's engine can no longer serve requests.
        """
        if isinstance(work.content, bytes) and work.content_sha256 is None:
            # The file has no hash yet, because this pass does not look for duplicates.
            work = replace(work, content_sha256=hashlib.sha256(work.content).hexdigest())
        image = await encode_work(work, self.teacher)
        if isinstance(image, ImageProblem):
            return [_RowBuilder(work, 0).without_pair(state_of(image), image.reason, image.detail)]
        numbers = range(self.config.num_questions)
        replies = await first_alone([partial(self._first_pass, image, number) for number in numbers])
        pairs = _parse_pairs(replies, self.task)
        rows = (
            self._second_pass(_RowBuilder(work, number), image, reply, pair)
            for number, reply, pair in zip(numbers, replies, pairs, strict=True)
        )
        return list(await asyncio.gather(*rows))

    async def _first_pass(self, image: EncodedImage, number: int) -> Reply | RequestRefused:
        as_json = self.config.reply == "json"
        request = Request(
            self.task.annotation_prompt(as_json),
            self._seeded(image.image_id if number == 0 else f"{image.image_id}#{number}"),
            schema=PAIR_SCHEMA if as_json else None,
        )
        try:
            return await self.teacher.generate(image, request)
        except RequestRefused as refused:
            return refused

    async def _second_pass(
        self, row: _RowBuilder, image: EncodedImage, first: Reply | RequestRefused, pair: QuestionAnswer | str
    ) -> Annotation:
        if isinstance(first, RequestRefused):
            return row.without_pair(first.state, first.reason, first.detail)
        if isinstance(pair, str):
            return row.without_pair(State.DROPPED, pair, None, first)
        try:
            seconds = await self._second_answers(row, image, self.task.answer_prompt(pair.question))
        except RequestRefused as refused:
            return row.without_pair(refused.state, refused.reason, refused.detail, first)
        return row.annotated(pair.question, pair.answer, first, seconds)

    async def _second_answers(self, row: _RowBuilder, image: EncodedImage, prompt: str) -> list[Reply]:
        num_answers, max_new_tokens = self.config.num_second_answers, self.answer.max_new_tokens
        if num_answers == 1:
            return [await self.teacher.generate(image, Request(prompt, SamplingConfig(max_new_tokens=max_new_tokens)))]
        requests = (
            Request(prompt, self._seeded(f"{row.annotation_id}?{number}", max_new_tokens))
            for number in range(num_answers)
        )
        return list(await asyncio.gather(*(self.teacher.generate(image, request) for request in requests)))

    def _seeded(self, name: str, max_new_tokens: int | None = None) -> SamplingConfig:
        """The configured sampling, with a seed derived from the configured seed and the name of the reply."""
        sampling = self.config.sampling
        digest = hashlib.sha256(f"{sampling.seed}:{name}".encode()).digest()
        return sampling.model_copy(
            update={
                "seed": int.from_bytes(digest[:4]) >> 1,
                "max_new_tokens": max_new_tokens or sampling.max_new_tokens,
            }
        )


def _parse_pairs(replies: Sequence[Reply | RequestRefused], task: Task) -> list[QuestionAnswer | str]:
    """The pair in each reply, or the reason why there is no pair. A pair that repeats a question becomes a reason."""
    pairs: list[QuestionAnswer | str] = []
    questions: set[str] = set()
    for reply in replies:
        pair = _parse_pair(reply, task)
        if isinstance(pair, QuestionAnswer):
            question = " ".join(pair.question.casefold().split())
            if question in questions:
                pair = Reason.REPEATED_QUESTION
            questions.add(question)
        pairs.append(pair)
    return pairs


def _parse_pair(reply: Reply | RequestRefused, task: Task) -> QuestionAnswer | str:
    if isinstance(reply, RequestRefused):
        return reply.reason
    if reply.is_all_reasoning:
        return Reason.REASONING_TRUNCATED
    return Reason.REPLY_TRUNCATED if reply.truncated else task.pair_in(reply.text)


def most_frequent(replies: Sequence[Reply]) -> tuple[Reply, float]:
    """The first reply of the largest group of replies with equal answers, and that group's share of all replies.

    Truncated replies, and replies without an answer, belong to no group; if all are such replies, the result is the
    first reply and 0.
    """
    equal = MATCHERS["exact"]
    groups: list[list[Reply]] = []
    for reply in replies:
        if reply.truncated or reply.is_all_reasoning:
            continue
        group = next((group for group in groups if equal(group[0].answer, reply.answer)), None)
        if group is None:
            groups.append([reply])
        else:
            group.append(reply)
    if not groups:
        return replies[0], 0.0
    # Of several largest groups, `max` returns the first.
    largest = max(groups, key=len)
    return largest[0], len(largest) / len(replies)


@dataclass(frozen=True)
class _RowBuilder:
    """Builds the annotation of one question about an image, in any of its states."""

    work: ImageWork[ImageRef]
    number: int
    """The number of the question among those about the image; the first has number 0."""

    @property
    def annotation_id(self) -> str:
        return f"{self.work.image_id}#{self.number}"

    def without_pair(self, state: State, reason: str, detail: str | None, first: Reply | None = None) -> Annotation:
        row = replace(
            self._row(state, str(reason)),
            detail=detail,
            duplicate_of=detail if reason == Reason.DUPLICATE_OF else None,
        )
        if first is None:
            return row
        return replace(
            row,
            reply=first.text,
            finish_reason=first.finish_reason,
            num_prompt_tokens=first.num_prompt_tokens,
            num_output_tokens=first.num_output_tokens,
            first_pass_s=first.elapsed_s,
        )

    def annotated(self, question: str, answer: str, first: Reply, seconds: Sequence[Reply]) -> Annotation:
        second, share = most_frequent(seconds)
        if second.is_all_reasoning:
            row = self._row(State.DROPPED, Reason.REASONING_TRUNCATED.value)
        elif second.truncated:
            row = self._row(State.DROPPED, Reason.SECOND_ANSWER_TRUNCATED.value)
        else:
            row = self._row(State.KEPT, None)
        return replace(
            row,
            question=question,
            answer=answer,
            second_answer=second.answer,
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

    def _row(self, state: State, reason: str | None) -> Annotation:
        (ref,) = self.work.rows
        return Annotation(
            annotation_id=self.annotation_id,
            image_id=ref.image_id,
            uri=ref.uri,
            state=state.value,
            reason=reason,
            metadata=ref.metadata,
            num_bytes=len(self.work.content) if isinstance(self.work.content, bytes) else None,
            content_sha256=self.work.content_sha256,
            attempts=self.work.attempts,
        )
