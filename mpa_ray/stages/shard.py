"""A unit of work as a stage gets it: images with their rows, and a bounded number of them in flight."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from mpa_ray.corpus.decode import ImageProblem, PreparedImage, prepare
from mpa_ray.records import Reason, RowT

OutT = TypeVar("OutT")


@dataclass(frozen=True)
class ImageWork(Generic[RowT]):
    """One image of a shard and all rows about it."""

    image_id: str
    uri: str
    rows: tuple[RowT, ...]
    content: bytes | None
    """The file; None where nothing has to be asked, or where it could not be read."""
    read_error: str | None = None


class Stage(Protocol[RowT, OutT]):
    """What a model actor runs on each image."""

    async def visit(self, work: ImageWork[RowT]) -> list[OutT]: ...


async def prepare_image(work: ImageWork[RowT], min_pixels: int, max_pixels: int) -> PreparedImage | ImageProblem:
    """Decode away from the event loop, so that the engine is not kept waiting."""
    if work.content is None:
        return ImageProblem(Reason.UNREADABLE, work.read_error or "not read")
    return await asyncio.to_thread(prepare, work.content, min_pixels, max_pixels)


async def visit_all(
    visit: Callable[[ImageWork[RowT]], Awaitable[list[OutT]]],
    images: Sequence[ImageWork[RowT]],
    slots: asyncio.Semaphore,
) -> list[OutT]:
    """Visit every image, as many at once as there are slots; rows come back in the images' order."""

    async def one(work: ImageWork[RowT]) -> list[OutT]:
        async with slots:
            return await visit(work)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(work)) for work in images]
    return [row for task in tasks for row in task.result()]
