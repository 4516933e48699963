"""Run a stage on the images of several shards: a limited number concurrently, and suspected engine killers alone."""

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
    """How to visit a shard in one attempt."""

    number: int
    """The first attempt has number 1."""
    alone: frozenset[str] = frozenset()
    """Images that may have killed an engine: each is visited with no other image in the engine."""
    all_alone: bool = False
    """Visit every image alone, since it is not known which images were in the engines that died."""
    quarantined: Mapping[str, int] = field(default_factory=dict)
    """Images that are no longer sent to an engine, with the number of engines that each has killed."""
    given_up: str | None = None
    """Why the shard is not visited at all; None if it is visited."""


class AttemptLog(Protocol):
    """A record of attempts that survives the process in which they are made."""

    async def begin(self, shard: str) -> Attempt: ...

    async def visited(self, shard: str) -> None: ...

    async def alone(self, shard: str, image_id: str | None) -> None: ...

    async def died(self, in_flight: Mapping[str, Sequence[str]], error: str) -> None: ...


class Slots:
    """Slots for images in an engine, to be taken one at a time or all together."""

    def __init__(self, num_slots: int) -> None:
        self._num_slots = num_slots
        self._free = asyncio.Semaphore(num_slots)
        # Without the lock, two tasks that each hold some of the slots would wait for each other forever.
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
    """Too many engines died on a shard."""


class Visits:
    """Runs a stage on several shards concurrently.

    If the stage's engine dies, the log first records which images were in it. Then `die` is called, which must end the
    process.
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
        """Begin without images. `load` shows how many images wait for a slot; `usage` sums up their waiting times."""
        self._stage = stage
        self._log = log
        self._die = die
        self._usage = usage or Usage()
        self._load = load or Load()
        self._slots = Slots(num_slots)
        self._in_flight: dict[str, set[str]] = {}
        self._death: asyncio.Task[None] | None = None

    async def visit(self, shard: str, images: Sequence[ImageWork[Any]]) -> list[Any]:
        """The rows of all images, in the images' order.

        Raises:
            GivenUp: too many engines died on this shard.
            ExceptionGroup, EngineDied: the engine died.
        """
        attempt = await self._log.begin(shard)
        if attempt.given_up is not None:
            raise GivenUp(attempt.given_up)
        self._in_flight[shard] = set()
        works = [_in_attempt(work, attempt) for work in images]
        alone = {i for i, work in enumerate(works) if attempt.all_alone or work.image_id in attempt.alone}
        async with asyncio.TaskGroup() as group:
            tasks = {
                i: group.create_task(self._visit_among_others(shard, work))
                for i, work in enumerate(works)
                if i not in alone
            }
        rows = {i: task.result() for i, task in tasks.items()}
        for i in sorted(alone):
            rows[i] = await self._visit_alone(shard, works[i])
        del self._in_flight[shard]
        await self._log.visited(shard)
        return [row for i in range(len(works)) for row in rows[i]]

    async def _visit_among_others(self, shard: str, work: ImageWork[Any]) -> list[Any]:
        arrived = time.monotonic()
        async with AsyncExitStack() as slot:
            with self._load.one_more("num_waiting"):
                await slot.enter_async_context(self._slots.one())
            self._usage.wait_s += time.monotonic() - arrived
            return await self._visit(shard, work)

    async def _visit_alone(self, shard: str, work: ImageWork[Any]) -> list[Any]:
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
            await self._end(str(error))
            raise
        finally:
            self._in_flight[shard].discard(work.image_id)

    async def _end(self, error: str) -> None:
        """Report the images in the engine once, then end the process.

        This is called for every image in the dead engine, and every call waits for the end of the process. If a call
        returned earlier, the error of its image would cancel the report.
        """
        if self._death is None:
            in_flight = {shard: sorted(image_ids) for shard, image_ids in self._in_flight.items()}
            self._death = asyncio.create_task(self._report_and_die(in_flight, error))
        await asyncio.shield(self._death)

    async def _report_and_die(self, in_flight: Mapping[str, Sequence[str]], error: str) -> None:
        await self._log.died(in_flight, error)
        await self._die(error)


def _in_attempt(work: ImageWork[Any], attempt: Attempt) -> ImageWork[Any]:
    num_killed = attempt.quarantined.get(work.image_id)
    if num_killed is None:
        return replace(work, attempts=attempt.number)
    problem = ImageProblem(Reason.KILLS_ENGINE, f"{num_killed} engines died with this image alone in them")
    return replace(work, attempts=1 + num_killed, content=problem)
