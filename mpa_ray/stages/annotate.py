"""The Pseudo Annotator: one visit of the teacher to an image gives a pair and the teacher's second answer to it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from mpa_ray.config import AnswerConfig, SamplingConfig
from mpa_ray.corpus.decode import ImageProblem
from mpa_ray.engine.protocol import Reply, RequestRefused, SeenImage, VisionLanguageModel
from mpa_ray.records import Annotation, ImageRef, Reason, State
from mpa_ray.stages.shard import ImageWork, look_at, state_of
from mpa_ray.tasks.parser import ReplyError, parse_reply
from mpa_ray.tasks.task import Task


@dataclass(frozen=True)
class Annotate:
    """Have the teacher write a question and its answer, then answer the question afresh.

    Both prompts go to one engine back to back: the image and the preamble after it are in the KV cache the second time.
    """

    teacher: VisionLanguageModel
    task: Task
    sampling: SamplingConfig
    answer: AnswerConfig

    async def visit(self, work: ImageWork[ImageRef]) -> list[Annotation]:
        """The image's row of D_PA; never raises for a fault of the image or of a reply."""
        row = _RowOf(work)
        image = await look_at(work, self.teacher)
        if isinstance(image, ImageProblem):
            return [row.ended(state_of(image), image.reason, image.detail)]
        try:
            sampling = self._sampling_for(work.image_id)
            first = await self.teacher.generate(image, self.task.annotation_prompt(), sampling)
        except RequestRefused as refused:
            return [row.ended(refused.state, refused.reason, refused.detail)]
        return [await self._second_pass(row, image, first)]

    async def _second_pass(self, row: _RowOf, image: SeenImage, first: Reply) -> Annotation:
        if first.truncated:
            return row.ended(State.DROPPED, Reason.REPLY_TRUNCATED, None, first)
        pairs = parse_reply(first.text)
        if isinstance(pairs, ReplyError):
            return row.ended(State.DROPPED, pairs, None, first)
        pair = pairs[0]
        try:
            sampling = SamplingConfig(max_new_tokens=self.answer.max_new_tokens)
            second = await self.teacher.generate(image, self.task.answer_prompt(pair.question), sampling)
        except RequestRefused as refused:
            return row.ended(refused.state, refused.reason, refused.detail, first)
        return row.annotated(pair.question, pair.answer, first, second)

    def _sampling_for(self, image_id: str) -> SamplingConfig:
        digest = hashlib.sha256(f"{self.sampling.seed}:{image_id}".encode()).digest()
        return self.sampling.model_copy(update={"seed": int.from_bytes(digest[:4]) >> 1})


@dataclass(frozen=True)
class _RowOf:
    """The beginning of an annotation, to be ended in one of its states."""

    work: ImageWork[ImageRef]

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
            "annotation_id": f"{ref.image_id}#0",
            "image_id": ref.image_id,
            "uri": ref.uri,
            "metadata": ref.metadata,
            "num_bytes": len(self.work.content) if isinstance(self.work.content, bytes) else None,
            "content_sha256": self.work.content_sha256,
            "attempts": self.work.attempts,
        }
