"""Run a stage on the images of several shards: a limited number of images concurrently, and suspects in groups."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from mpa_ray.engine.protocol import EncodedImage, EngineDied
from mpa_ray.errors.remedies import Remedy
from mpa_ray.imaging.decode import ImageProblem
from mpa_ray.observability.usage import Load, Usage
from mpa_ray.records import Reason
from mpa_ray.stages.image_work import ImageWork, Stage


@dataclass(frozen=True)
class Attempt:
    """How to visit a shard in one attempt."""

    number: int
    """The first attempt has number 1."""
    suspects: frozenset[str] = frozenset()
    """Images that may have killed an engine. They are visited in groups, after all other images of the shard."""
    quarantined: Mapping[str, int] = field(default_factory=dict)
    """Images that are no longer sent to an engine, with the number of engines that each image has killed."""
    needs_probe: bool = False
    """Whether the engine has to answer a probe picture before it visits the shard."""
    given_up: str | None = None
    """Why the shard is not visited at all; None if it is visited."""
    is_engine_fault: bool = False
    """Whether the shard is given up because of the engine and not because of its images."""
    remedy: Remedy | None = None
    """What the user must do to continue the run if the shard is given up; None if the text of `given_up` decides."""


class AttemptLog(Protocol):
    """A record of attempts that survives the process in which they are made."""

    async def begin(self, shard: str, generation: int, images: Sequence[str]) -> Attempt:
        """Begin to visit a generation of a shard. `images` names the images that an engine has to visit."""
        ...

    async def visited(self, shard: str) -> None: ...

    async def next_group(self, shard: str) -> Sequence[str] | None:
        """Record that the previous group was visited, and return the next one; empty if no group is left.

        Returns:
            None if another engine has begun to visit the shard, because this one is assumed to be dead.
        """
        ...

    async def begin_probe(self) -> None:
        """Record that the engine holds the probe picture and nothing else."""
        ...

    async def end_probe(self, is_answered: bool) -> None:
        """Record that the probe picture is no longer in the engine, and whether the engine has answered it."""
        ...

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
    """A shard is no longer visited, because engines have died."""

    def __init__(self, problem: str, is_engine_fault: bool = False, remedy: Remedy | None = None) -> None:
        """Describe what has happened.

        Args:
            problem: What has happened.
            is_engine_fault: Whether the engine has caused the deaths, and not an image.
            remedy: What the user must do to continue the run; None if the text of the problem decides.
        """
        super().__init__(problem)
        self.is_engine_fault, self.remedy = is_engine_fault, remedy


async def _no_probe() -> None:
    """Send no probe picture. For engines that cannot die."""


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
        probe: Callable[[], Awaitable[None]] = _no_probe,
    ) -> None:
        """Begin with an empty engine.

        Args:
            stage: Visits an image.
            num_slots: How many images may be in the engine at the same time.
            log: Records the attempts.
            die: Ends the process.
            usage: The time for which images wait for a slot is added to this object.
            load: This object shows the number of images that wait for a slot.
            probe: Sends the probe picture to the engine.
        """
        self._stage = stage
        self._log = log
        self._die = die
        self._usage = usage or Usage()
        self._load = load or Load()
        self._probe = probe
        self._num_slots, self._slots = num_slots, Slots(num_slots)
        self._probing: asyncio.Task[None] | None = None
        self._in_flight: dict[str, set[str]] = {}
        self._death: asyncio.Task[None] | None = None

    async def visit(self, shard: str, images: Sequence[ImageWork[Any]], generation: int = 0) -> list[Any]:
        """Visit all images of a shard, and return their rows in the order of the images.

        Args:
            shard: The shard.
            images: Its images.
            generation: The generation of the shard that the rows will belong to.

        Raises:
            GivenUp: the shard must no longer be visited.
            ExceptionGroup, EngineDied: the engine died.
        """
        to_visit = [work.image_id for work in images if isinstance(work.content, bytes | EncodedImage)]
        attempt = await self._log.begin(shard, generation, to_visit)
        if attempt.given_up is not None:
            raise GivenUp(attempt.given_up, attempt.is_engine_fault, attempt.remedy)
        self._in_flight[shard] = set()
        if attempt.needs_probe:
            await self._probe_once()
        works = [_in_attempt(work, attempt) for work in images]
        others = {i: work for i, work in enumerate(works) if work.image_id not in attempt.suspects}
        rows = await _all_rows({i: self._visit_among_others(shard, work) for i, work in others.items()})
        if attempt.suspects:
            async with self._slots.all():
                while names := await self._next_group(shard):
                    group = {i: work for i, work in enumerate(works) if work.image_id in names}
                    rows |= await self._visit_together(shard, group)
        del self._in_flight[shard]
        await self._log.visited(shard)
        return [row for i in range(len(works)) for row in rows[i]]

    async def _next_group(self, shard: str) -> set[str]:
        names = await self._log.next_group(shard)
        if names is None:
            # This shard has all slots and no group is in the engine, so the end of the engine makes no image a suspect.
            error = f"shard {shard} was given to another engine, because this one could not be reached"
            await self._end(error)
            raise EngineDied(error)
        return set(names)

    async def _probe_once(self) -> None:
        """Send the probe picture, unless the engine has answered it before, and wait for the engine's answer."""
        if self._probing is None or _has_failed(self._probing):
            self._probing = asyncio.create_task(self._probe_alone())
        await asyncio.shield(self._probing)

    async def _probe_alone(self) -> None:
        async with self._slots.all():
            await self._log.begin_probe()
            try:
                await self._probe()
            except EngineDied as error:
                await self._end(str(error))
                raise
            except BaseException:
                await self._log.end_probe(is_answered=False)
                raise
            await self._log.end_probe(is_answered=True)

    async def _visit_among_others(self, shard: str, work: ImageWork[Any]) -> list[Any]:
        arrived = time.monotonic()
        async with AsyncExitStack() as slot:
            with self._load.one_more("num_waiting"):
                await slot.enter_async_context(self._slots.one())
            self._usage.wait_s += time.monotonic() - arrived
            return await self._visit(shard, work)

    async def _visit_together(self, shard: str, works: Mapping[int, ImageWork[Any]]) -> dict[int, list[Any]]:
        """Visit a group while this shard has all slots."""
        slots = asyncio.Semaphore(self._num_slots)

        async def visit(work: ImageWork[Any]) -> list[Any]:
            async with slots:
                return await self._visit(shard, work)

        return await _all_rows({i: visit(work) for i, work in works.items()})

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


def _has_failed(task: asyncio.Task[None]) -> bool:
    return task.done() and (task.cancelled() or task.exception() is not None)


async def _all_rows(visits: Mapping[int, Coroutine[Any, Any, list[Any]]]) -> dict[int, list[Any]]:
    """The rows of images that are visited concurrently."""
    async with asyncio.TaskGroup() as group:
        tasks = {i: group.create_task(visit) for i, visit in visits.items()}
    return {i: task.result() for i, task in tasks.items()}


def _in_attempt(work: ImageWork[Any], attempt: Attempt) -> ImageWork[Any]:
    num_killed = attempt.quarantined.get(work.image_id)
    if num_killed is None:
        return replace(work, attempts=attempt.number)
    died = "1 engine died while it" if num_killed == 1 else f"{num_killed} engines died while they"
    problem = ImageProblem(Reason.KILLS_ENGINE, f"{died} held only this image")
    return replace(work, attempts=1 + num_killed, content=problem)
