"""Summarise the teacher's pass for the report: outcomes, the cost of second answers, and the images that failed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from mpa_ray.config import ModelConfig
from mpa_ray.records import Annotation, State

MAX_FAILED_LISTED = 200


@dataclass(frozen=True)
class TeacherSummary:
    """Sums over the teacher's visits."""

    by_outcome: dict[str, int]
    """The number of annotations with each outcome: `kept`, or a reason."""
    num_second_answers: int
    cached_token_share: float | None
    """The share of tokens from the cache in the prompts for second answers; None if there are no second answers."""
    num_uncached_image_tokens: int
    """The number of image tokens that were computed again for second answers."""
    num_visits_with_uncached_image: int
    second_pass_time_share: float | None
    """The time of the requests for second answers, divided by the time of all requests.

    Requests overlap, so their times are meaningful only in relation to each other.
    """
    num_output_tokens: int
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class FailedImage:
    """An image that could not be annotated."""

    image: str
    reason: str | None
    detail: str | None


def teacher_summary(rows: Iterable[Annotation], model: ModelConfig) -> TeacherSummary:
    """Summarise the annotations, with a warning if image tokens were computed again for second answers."""
    by_outcome: Counter[str] = Counter()
    num_second_answers = num_second_prompt_tokens = num_cached_tokens = 0
    num_uncached_image_tokens = num_visits_with_uncached_image = 0
    num_output_tokens = 0
    first_pass_s = second_pass_s = 0.0
    for row in rows:
        by_outcome[row.reason or row.state] += 1
        num_output_tokens += row.num_output_tokens + row.num_second_output_tokens
        first_pass_s += row.first_pass_s
        if row.second_answer is None:
            continue
        num_second_answers += 1
        second_pass_s += row.second_pass_s
        num_cached_tokens += row.num_second_cached_tokens
        num_second_prompt_tokens += row.num_second_prompt_tokens
        num_uncached_image_tokens += row.num_uncached_image_tokens
        num_visits_with_uncached_image += row.num_uncached_image_tokens > 0
    summary = TeacherSummary(
        by_outcome=dict(by_outcome.most_common()),
        num_second_answers=num_second_answers,
        cached_token_share=_share(num_cached_tokens, num_second_prompt_tokens),
        num_uncached_image_tokens=num_uncached_image_tokens,
        num_visits_with_uncached_image=num_visits_with_uncached_image,
        second_pass_time_share=_share(second_pass_s, first_pass_s + second_pass_s),
        num_output_tokens=num_output_tokens,
    )
    return replace(summary, warnings=second_pass_warnings(summary, model))


def second_pass_warnings(summary: TeacherSummary, model: ModelConfig) -> list[str]:
    """Return a warning with what to check, if image tokens were computed again for second answers."""
    if not summary.num_visits_with_uncached_image:
        return []
    block_size = model.engine.cache_block_tokens or "vLLM's default; 32 on a CPU"
    return [
        f"{summary.num_visits_with_uncached_image} of {summary.num_second_answers} second answers computed image "
        f"tokens again ({summary.num_uncached_image_tokens} in all). Either the chat template of {model.model} puts "
        f"fewer tokens between image and question than a block of the KV cache holds (block_size: {block_size}), or "
        "the cache is too small for the images in flight."
    ]


def failed_images(rows: Iterable[Annotation]) -> list[FailedImage]:
    """The first `MAX_FAILED_LISTED` images that failed."""
    failed = (FailedImage(row.image_id, row.reason, row.detail) for row in rows if row.state == State.FAILED)
    return [image for image, _ in zip(failed, range(MAX_FAILED_LISTED), strict=False)]


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None
