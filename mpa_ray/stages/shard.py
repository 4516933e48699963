"""A unit of work as a stage gets it: images with their rows, and a bounded number of them in flight."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from mpa_ray.corpus.decode import ImageProblem, PreparedImage, prepare
from mpa_ray.records import Reason, RowT, State

OutT = TypeVar("OutT")

_SMALL_BYTES = 4 * 2**10


@dataclass(frozen=True)
class ImageWork(Generic[RowT]):
    """One image of a shard and all rows about it."""

    image_id: str
    uri: str
    rows: tuple[RowT, ...]
    content: bytes | ImageProblem | None
    """The file, or why there is none; None where nothing has to be asked."""
    content_sha256: str | None = None
    attempts: int = 1
    """The number of this attempt."""


class Stage(Protocol[RowT, OutT]):
    """What a model actor runs on each image."""

    async def visit(self, work: ImageWork[RowT]) -> list[OutT]: ...


async def prepare_image(work: ImageWork[RowT], min_pixels: int, max_pixels: int) -> PreparedImage | ImageProblem:
    """Decode away from the event loop, so that the engine is not kept waiting; a small file takes less than the way."""
    if work.content is None or isinstance(work.content, ImageProblem):
        return work.content or ImageProblem(Reason.UNREADABLE, "not read")
    if len(work.content) <= _SMALL_BYTES:
        return prepare(work.content, min_pixels, max_pixels)
    return await asyncio.to_thread(prepare, work.content, min_pixels, max_pixels)


def state_of(problem: ImageProblem) -> State:
    """Dropped where the user asked to leave such images out, failed where anything is wrong with it."""
    by_choice = problem.reason in (Reason.DUPLICATE_OF, Reason.TOO_FEW_BYTES, Reason.TOO_MANY_BYTES)
    return State.DROPPED if by_choice else State.FAILED
