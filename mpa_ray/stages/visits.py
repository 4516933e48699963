"""Many shards' images through one engine, a bounded number at a time, and each alone that may have killed one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from mpa_ray.engine.protocol import EngineDied
from mpa_ray.imaging.decode import ImageProblem
from mpa_ray.observability.usage import Load, Usage
from mpa_ray.records import Reason
from mpa_ray.stages.image_work import ImageWork, Stage


@dataclass(frozen=True)
class Attempt:
    """How a shard is to be visited this time."""

    number: int
    """From 1 on."""
    alone: frozenset[str] = frozenset()
    """Images that may have killed an engine: each is visited with nothing else in it."""
    all_alone: bool = False
    """Nobody knows which images were in the engines that died."""
    quarantined: Mapping[str, int] = field(default_factory=dict)
    """Images that are not shown to an engine again, with the engines that each has killed."""
    given_up: str | None = None
    """Why the shard is not visited at all."""


class AttemptLog(Protocol):
    """Where attempts are remembered by others than those who may die in them."""

    async def begin(self, shard: str) -> Attempt: ...

    async def alone(self, shard: str, image_id: str | None) -> None: ...

    async def died(self, in_flight: Mapping[str, Sequence[str]], error: str) -> None: ...


class Slots:
    """Room for images in an engine: one slot at a time, or all of them together."""

    def __init__(self, num_slots: int) -> None:
        self._num_slots = num_slots
        self._free = asyncio.Semaphore(num_slots)
        # Two that each took some of the slots would wait for each other.
        self._one_takes_all = asyncio.Lock()

    @asynccontextmanager
    async def one(self) -> AsyncIterator[None]:
        async with self._free:
            yield

    @asynccontextmanager
    async def all(self) -> AsyncIterator[None]:
        num_taken = 0
        try:
            async with self._one_takes_all:
                for _ in range(self._num_slots):
                    await self._free.acquire()
                    num_taken += 1
                yield
        finally:
            for _ in range(num_taken):
                self._free.release()


class GivenUp(Exception):
    """Engines died too often on a shard."""


class Visits:
    """Takes shards, several at a time, through a stage whose engine may die.

    On the engine's death `die` is called once the log knows which images were in it; it must end the process.
    """

    def __init__(
        self,
        stage: Stage[Any, Any],
        num_slots: int,
        log: AttemptLog,
        die: Callable[[str], Awaitable[None]],
        usage: Usage | None = None,
        load: Load | None = None,
    ) -> None:
        """Images that wait for room are counted in `load`, and how long they wait is added to `usage`."""
        self._stage, self._log, self._die = stage, log, die
        self._effort, self._load = usage or Usage(), load or Load()
        self._slots = Slots(num_slots)
        self._in_flight: dict[str, set[str]] = {}
        self._is_dying = False

    async def visit(self, shard: str, images: Sequence[ImageWork[Any]]) -> list[Any]:
        """The rows of all images, in the images' order. Raises GivenUp."""
        attempt = await self._log.begin(shard)
        if attempt.given_up is not None:
            raise GivenUp(attempt.given_up)
        self._in_flight[shard] = set()
        works = [_in_attempt(work, attempt) for work in images]
        alone = {i for i, w in enumerate(works) if attempt.all_alone or w.image_id in attempt.alone}
        async with asyncio.TaskGroup() as group:
            tasks = {i: group.create_task(self._among_others(shard, w)) for i, w in enumerate(works) if i not in alone}
        rows = {i: task.result() for i, task in tasks.items()}
        for i in sorted(alone):
            rows[i] = await self._alone(shard, works[i])
        del self._in_flight[shard]
        return [row for i in range(len(works)) for row in rows[i]]

    async def _among_others(self, shard: str, work: ImageWork[Any]) -> list[Any]:
        arrived = time.monotonic()
        async with AsyncExitStack() as slot:
            with self._load.one_more("num_waiting"):
                await slot.enter_async_context(self._slots.one())
            self._effort.wait_s += time.monotonic() - arrived
            return await self._visit(shard, work)

    async def _alone(self, shard: str, work: ImageWork[Any]) -> list[Any]:
        async with self._slots.all():
            await self._log.alone(shard, work.image_id)
            rows = await self._visit(shard, work)
            await self._log.alone(shard, None)
        return rows

    async def _visit(self, shard: str, work: ImageWork[Any]) -> list[Any]:
        self._in_flight[shard].add(work.image_id)
        try:
            return await self._stage.visit(work)
        except EngineDied as error:
            if not self._is_dying:
                # The first of many that meet the same death speaks for all.
                self._is_dying = True
                await self._log.died({s: sorted(images) for s, images in self._in_flight.items()}, str(error))
                await self._die(str(error))
            raise
        finally:
            self._in_flight[shard].discard(work.image_id)


def _in_attempt(work: ImageWork[Any], attempt: Attempt) -> ImageWork[Any]:
    num_killed = attempt.quarantined.get(work.image_id)
    if num_killed is None:
        return replace(work, attempts=attempt.number)
    problem = ImageProblem(Reason.KILLS_ENGINE, f"{num_killed} engines died with this image alone in them")
    return replace(work, attempts=1 + num_killed, content=problem)
