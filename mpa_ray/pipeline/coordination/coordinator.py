"""The state of one pass as one object. `mpa_ray.pipeline.graph` makes it an actor that outlives every worker."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import replace
from typing import Any

from mpa_ray.config import LimitsConfig
from mpa_ray.observability.worker_process import WorkerProcess
from mpa_ray.pipeline.coordination.attempts import Attempts
from mpa_ray.pipeline.coordination.bytes_in_flight import BytesInFlight
from mpa_ray.pipeline.coordination.deaths import Begun, DeathRegister, RecordDeath, WasTakenAway, never_taken_away
from mpa_ray.pipeline.coordination.duplicates import Duplicates, Sighting
from mpa_ray.pipeline.coordination.end_of_pass import EndOfPass
from mpa_ray.pipeline.coordination.shard_queue import ShardQueue
from mpa_ray.pipeline.coordination.suspects_in_run import SuspectsFiles, SuspectsInRun
from mpa_ray.pipeline.coordination.turns import OrderedTurns
from mpa_ray.stages.visits import Attempt

_MAX_DEATHS_AT_START = 3
"""An engine whose process dies this many times while it starts, for example for lack of memory, is not started
again."""


class PassCoordinator:
    """Queue, leases, duplicates, attempts and deaths of one pass, as the methods of one actor."""

    def __init__(
        self,
        limits: LimitsConfig,
        max_bytes_in_flight: int,
        record_death: RecordDeath,
        was_taken_away: WasTakenAway = never_taken_away,
        suspects_files: SuspectsFiles | None = None,
        engine: str = "",
    ) -> None:
        """Begin a pass.

        Args:
            limits: The limits on deaths of engines and on images that kill engines.
            max_bytes_in_flight: See `BytesInFlight`.
            record_death: Records a death in the run.
            was_taken_away: Returns whether a dead process was ended from outside.
            suspects_files: The files for what deaths have shown about images; if None, no files are read or written.
            engine: Identifies the engine of the pass; see `Suspects.engine`.
        """
        self._queue = ShardQueue()
        self._attempts = Attempts(limits)
        self._deaths = DeathRegister(record_death, was_taken_away)
        self._in_flight: dict[WorkerProcess, Mapping[str, Sequence[str]]] = {}
        """The images that were in each dead engine, if it could report them."""
        self._suspects = SuspectsInRun(suspects_files, engine)
        self._quarantined: dict[str, list[str]] = {}
        self._background: set[asyncio.Task[None]] = set()
        self._starts = Begun(self._deaths, min(limits.max_engine_deaths, _MAX_DEATHS_AT_START))
        self._fetches = Begun(self._deaths, limits.max_engine_deaths)
        self._turns_to_read, self._turns_to_claim = OrderedTurns(), OrderedTurns()
        self._bytes = BytesInFlight(self._turns_to_read, max_bytes_in_flight)
        self._duplicates = Duplicates(self._turns_to_claim)
        self._end: EndOfPass[Any] = EndOfPass()

    async def add_shard(self, shard: str) -> None:
        """Add a shard to the pass."""
        self._turns_to_read.add(shard)
        self._turns_to_claim.add(shard)
        await self._queue.add(shard)

    async def close(self) -> None:
        """End the list of shards: no more are added."""
        await self._queue.close()

    async def shards_from(self, index: int) -> list[str] | None:
        """See `ShardQueue.read_from`."""
        return await self._queue.read_from(index)

    def add_committed_images(self, committed: Mapping[str, Sequence[Sighting | None]]) -> None:
        """Add the images of shards that are already committed."""
        for shard, sightings in committed.items():
            self._duplicates.add_committed(shard, sightings)

    async def acquire_bytes(self, shard: str, num_bytes: int) -> bool:
        """See `BytesInFlight.acquire`."""
        return await self._bytes.acquire(shard, num_bytes)

    async def begin_fetch(self, shard: str, process: WorkerProcess) -> str:
        """Record that a process begins to read a shard. Returns why it must not read the shard, or "" if it may."""
        return await self._fetches.begin(shard, process)

    async def end_fetch(self, shard: str, num_bytes: int) -> None:
        """Record that a shard's files are read, and replace their expected size. See `BytesInFlight.resize`."""
        self._fetches.end(shard)
        await self._bytes.resize(shard, num_bytes)

    async def begin_start(self, actor_id: str, process: WorkerProcess) -> str:
        """Record that an actor begins to start its engine. Returns why it must not start it, or "" if it may."""
        return await self._starts.begin(actor_id, process)

    async def end_start(self, actor_id: str) -> None:
        """Record that an actor has started its engine, or has reported why it cannot start the engine."""
        self._starts.end(actor_id)

    async def record_failed_start(self, process: WorkerProcess, error: str) -> str:
        """Record that an engine cannot start; returns the cause and the path of the log."""
        return await self._deaths.begin(process, error)

    async def claim_images(self, shard: str, sightings: Sequence[Sighting | None]) -> list[str | None] | None:
        """See `Duplicates.claim`."""
        return await self._duplicates.claim(shard, sightings)

    async def begin_attempt(
        self, shard: str, process: WorkerProcess, images: Sequence[str], generation: int = 0
    ) -> Attempt:
        """Record how the previous attempt ended, and begin another attempt in a process. See `Attempts.begin`."""
        previous = self._attempts.unfinished_engine(shard)
        if isinstance(previous, WorkerProcess) and previous != process:
            await self._bury(previous)
        if not self._attempts.is_known(shard):
            before = await self._suspects.read(shard, generation)
            # If the shard is redone, an engine has visited its other images before, without a death.
            has_survivor = before.has_survivor or generation > 0
            self._attempts.learn(shard, replace(before, has_survivor=has_survivor))
        attempt = self._attempts.begin(shard, process, images)
        self._quarantined[shard] = list(attempt.quarantined)
        if attempt.is_engine_fault:
            await self._suspects.delete(shard)
        return attempt

    async def begin_probe(self, process: WorkerProcess) -> None:
        """See `Attempts.begin_probe`."""
        self._attempts.begin_probe(process)

    async def end_probe(self, process: WorkerProcess, is_answered: bool) -> None:
        """See `Attempts.end_probe`."""
        self._attempts.end_probe(process, is_answered)

    async def next_group(self, shard: str, process: WorkerProcess) -> Sequence[str] | None:
        """See `Attempts.next_group`."""
        group = self._attempts.next_group(shard, process)
        if group is not None:
            await self._suspects.write(shard, self._attempts.knowledge(shard))
        return group

    async def report_visited(self, shard: str, process: WorkerProcess) -> None:
        """See `Attempts.report_visited`."""
        self._attempts.report_visited(shard, process)

    async def report_death(self, process: WorkerProcess, in_flight: Mapping[str, Sequence[str]], error: str) -> None:
        """See `Attempts.bury`. Does not wait until the death is recorded, so that the process can end immediately."""
        self._in_flight[process] = in_flight
        self._deaths.begin(process, error)
        self._in_background(self._bury(process))

    def latest_death(self) -> tuple[int, str]:
        """See `DeathRegister.latest`."""
        return self._deaths.latest

    def quarantined(self) -> list[str]:
        """The images that have killed engines, of all shards."""
        return [image_id for images in self._quarantined.values() for image_id in images]

    async def give_up(self, failure: Any) -> None:
        """See `EndOfPass.give_up`."""
        self._end.give_up(failure)

    async def wait_for_failure(self) -> Any:
        """See `EndOfPass.wait`."""
        return await self._end.wait()

    async def end_shard(self, shard: str) -> None:
        """Free the resources of a shard that is committed, or left for the next run."""
        self._attempts.forget(shard)
        self._in_background(self._suspects.delete(shard))
        await self._bytes.release(shard)

    async def settle(self) -> None:
        """Wait until all deaths are recorded."""
        await self._deaths.settle()
        await asyncio.gather(*self._background)

    async def _bury(self, process: WorkerProcess) -> None:
        """Record a death, and write to the run's files what it shows about images."""
        cause = await self._deaths.cause_of(process)
        was_taken_away = await self._deaths.was_taken_away(process)
        known = {
            shard: self._attempts.knowledge(shard)
            for shard in self._attempts.bury(process, self._in_flight.pop(process, None), cause, was_taken_away)
        }
        for shard, suspects in known.items():
            await self._suspects.write(shard, suspects)

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
