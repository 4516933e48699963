"""The state of one pass as one object. `mpa_ray.pipeline.graph` makes it an actor that outlives every worker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mpa_ray.config import LimitsConfig
from mpa_ray.observability.worker_process import WorkerProcess
from mpa_ray.pipeline.coordination.attempts import Attempts
from mpa_ray.pipeline.coordination.bytes_in_flight import BytesInFlight
from mpa_ray.pipeline.coordination.deaths import Begun, Deaths, RecordDeath
from mpa_ray.pipeline.coordination.duplicates import Duplicates, Sighting
from mpa_ray.pipeline.coordination.end_of_pass import EndOfPass
from mpa_ray.pipeline.coordination.shard_queue import ShardQueue
from mpa_ray.pipeline.coordination.turns import OrderedTurns
from mpa_ray.stages.visits import Attempt

_MAX_DEATHS_AT_START = 3
"""An engine whose process dies this often while it starts, for example for lack of memory, is not started again."""


class PassCoordinator:
    """Queue, leases, duplicates, attempts and deaths of one pass, as the methods of one actor."""

    def __init__(self, limits: LimitsConfig, max_bytes_in_flight: int, record_death: RecordDeath) -> None:
        self._queue = ShardQueue()
        self._attempts = Attempts(limits)
        self._deaths = Deaths(record_death)
        self._visiting: dict[str, WorkerProcess] = {}
        """The process of the latest attempt at each shard."""
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
        """Record that a process begins to read a shard. Returns why it must not, or "" if it may."""
        return await self._fetches.begin(shard, process)

    async def end_fetch(self, shard: str, num_bytes: int) -> None:
        """Record that a shard's files are read, and replace their expected size. See `BytesInFlight.resize`."""
        self._fetches.end(shard)
        await self._bytes.resize(shard, num_bytes)

    async def begin_start(self, actor_id: str, process: WorkerProcess) -> str:
        """Record that an actor begins to start its engine. Returns why it must not, or "" if it may."""
        return await self._starts.begin(actor_id, process)

    async def end_start(self, actor_id: str) -> None:
        """Record that an actor has started its engine, or has reported why it cannot."""
        self._starts.end(actor_id)

    async def record_failed_start(self, process: WorkerProcess, error: str) -> str:
        """Record that an engine cannot start; returns the cause and the path of the log."""
        return await self._deaths.begin(process, error)

    async def claim_images(self, shard: str, sightings: Sequence[Sighting | None]) -> list[str | None] | None:
        """See `Duplicates.claim`."""
        return await self._duplicates.claim(shard, sightings)

    async def begin_attempt(self, shard: str, process: WorkerProcess) -> Attempt:
        """Begin an attempt in a process, and find out why the previous attempt ended. See `Attempts.begin`."""
        previous = self._visiting.get(shard)
        if previous == process:
            # The process is alive, so the attempt did not end with a death: Ray has lost its rows.
            self._attempts.report_visited(shard)
        elif previous is not None and self._attempts.has_ended_silently(shard):
            self._attempts.explain(shard, await self._deaths.cause_of(previous))
        elif previous is not None and (cause := self._deaths.reported(previous)) is not None:
            self._attempts.explain(shard, await cause)
        self._visiting[shard] = process
        return self._attempts.begin(shard)

    async def report_visited(self, shard: str) -> None:
        """See `Attempts.report_visited`."""
        self._attempts.report_visited(shard)

    async def set_alone(self, shard: str, image_id: str | None) -> None:
        """See `Attempts.set_alone`."""
        self._attempts.set_alone(shard, image_id)

    async def report_death(self, process: WorkerProcess, in_flight: Mapping[str, Sequence[str]], error: str) -> None:
        """See `Attempts.report_death`. The process may end before its death is recorded."""
        self._attempts.report_death(in_flight, error)
        self._deaths.begin(process, error)

    async def give_up(self, failure: Any) -> None:
        """See `EndOfPass.give_up`."""
        self._end.give_up(failure)

    async def wait_for_failure(self) -> Any:
        """See `EndOfPass.wait`."""
        return await self._end.wait()

    async def end_shard(self, shard: str) -> None:
        """Free the resources of a shard that is committed, or left for the next run."""
        self._attempts.forget(shard)
        self._visiting.pop(shard, None)
        await self._bytes.release(shard)

    async def settle(self) -> None:
        """Wait until all deaths are recorded."""
        await self._deaths.settle()
