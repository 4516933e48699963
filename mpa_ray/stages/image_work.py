"""The unit of work of every stage (one image with its rows), and the functions that all stages share."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Generic, Protocol, TypeVar

from mpa_ray.engine.protocol import EncodedImage, RequestRefused, VisionLanguageModel
from mpa_ray.imaging.decode import ImageProblem
from mpa_ray.records import Annotation, HasOutcome, OfModel, Reason, RowT, State
from mpa_ray.tasks.parser import ReplyError

T = TypeVar("T")
OutT = TypeVar("OutT", bound=HasOutcome)


@dataclass(frozen=True)
class ImageWork(Generic[RowT]):
    """One image of a shard and all rows about it."""

    image_id: str
    uri: str
    rows: tuple[RowT, ...]
    content: bytes | EncodedImage | ImageProblem | None
    """The file's bytes, the encoded image, or the reason why it cannot be used; None if no row needs the image."""
    content_sha256: str | None = None
    attempts: int = 1
    """The number of this attempt; the first has number 1."""


class Stage(Protocol[RowT, OutT]):
    """What a model actor does with each image."""

    async def visit(self, work: ImageWork[RowT]) -> list[OutT]: ...


async def encode_work(work: ImageWork[RowT], model: VisionLanguageModel) -> EncodedImage | ImageProblem:
    """Return the image in the engine's form, or the reason why it cannot be used.

    Raises:
        EngineDied: the engine can no longer take images.
    """
    content = work.content
    if isinstance(content, bytes):
        seen = (row.content_sha256 for row in work.rows if isinstance(row, Annotation))
        content = unless_changed(content, next(seen, None))
    if not isinstance(content, bytes):
        return content or ImageProblem(Reason.UNREADABLE, "not read")
    try:
        return await model.encode_image(work.image_id, content)
    except RequestRefused as refused:
        return ImageProblem(refused.reason, refused.detail)


def unless_changed(content: bytes, sha256: str | None) -> bytes | ImageProblem:
    """Return an image file, or a reason if its digest differs from `sha256`, which an earlier phase has stored."""
    if sha256 is None or hashlib.sha256(content).hexdigest() == sha256:
        return content
    return ImageProblem(Reason.IMAGE_CHANGED, "not the file that the teacher saw: its SHA-256 differs")


async def first_alone(calls: Sequence[Callable[[], Awaitable[T]]]) -> list[T]:
    """Make all calls about one image, and return their results in the order of the calls.

    The first call runs alone. The other calls then run concurrently and find the image in the engine's cache.
    """
    if not calls:
        return []
    return [await calls[0](), *await asyncio.gather(*(call() for call in calls[1:]))]


def state_of(problem: ImageProblem) -> State:
    """Dropped if the settings exclude the image, or if its prompt would be too long; failed otherwise."""
    dropped = (Reason.DUPLICATE_OF, Reason.TOO_FEW_BYTES, Reason.TOO_MANY_BYTES, Reason.PROMPT_TOO_LONG)
    return State.DROPPED if problem.reason in dropped else State.FAILED


def outcomes(rows: Sequence[HasOutcome]) -> Counter[tuple[str, str]]:
    """The number of rows by state and reason; the reason is "" for rows without a reason."""
    return Counter((str(row.state), str(row.reason or "")) for row in rows)


UNPARSED = frozenset((*ReplyError, Reason.REPLY_TRUNCATED, Reason.REASONING_TRUNCATED))
"""Why a row has a reply, but neither a pair nor an answer."""


def unparsed_replies(rows: Sequence[HasOutcome]) -> tuple[int, Counter[str]]:
    """The number of replies in the rows of a pass, and the numbers of those that cannot be used, by reason.

    Rows that an earlier pass has dropped have no reply in this pass. If the rows come from several models, only the
    replies of the model with the most such replies are counted.
    """
    counts = map(_unparsed_replies, _by_model(rows).values())
    return max(counts, key=lambda count: count[1].total(), default=(0, Counter()))


def _unparsed_replies(rows: Sequence[HasOutcome]) -> tuple[int, Counter[str]]:
    plain = (row.row if isinstance(row, OfModel) else row for row in rows)
    replied = [row for row in plain if getattr(row, "finish_reason", None) is not None]
    return len(replied), Counter(str(row.reason) for row in replied if row.reason in UNPARSED)


def failed_images(rows: Sequence[HasOutcome]) -> Counter[str]:
    """The number of images whose rows all failed, by the reason of each image's first row.

    Rows about the same image must be adjacent. If the rows come from several models, only the rows of the model with
    the most failed images are counted.
    """
    return max(map(_failed_images, _by_model(rows).values()), key=Counter.total, default=Counter())


def _by_model(rows: Sequence[HasOutcome]) -> dict[str, list[HasOutcome]]:
    by_model: dict[str, list[HasOutcome]] = {}
    for row in rows:
        by_model.setdefault(row.model if isinstance(row, OfModel) else "", []).append(row)
    return by_model


def _failed_images(rows: Sequence[HasOutcome]) -> Counter[str]:
    by_image = (list(group) for _, group in groupby(rows, key=lambda row: row.image_id))
    return Counter(str(group[0].reason) for group in by_image if all(row.state == State.FAILED for row in group))
