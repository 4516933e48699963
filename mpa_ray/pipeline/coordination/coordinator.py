"""The state of one pass as one object. `mpa_ray.pipeline.graph` makes it an actor that outlives every worker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mpa_ray.config import LimitsConfig
from mpa_ray.pipeline.coordination.attempts import Attempts
from mpa_ray.pipeline.coordination.bytes_in_flight import BytesInFlight
from mpa_ray.pipeline.coordination.duplicates import Duplicates, Sighting
from mpa_ray.pipeline.coordination.end_of_pass import EndOfPass
from mpa_ray.pipeline.coordination.shard_queue import ShardQueue
from mpa_ray.pipeline.coordination.turns import OrderedTurns
from mpa_ray.stages.visits import Attempt


class PassCoordinator:
    """Queue, leases, duplicates and attempts of one pass, as the methods of one actor."""

    def __init__(self, limits: LimitsConfig, max_bytes_in_flight: int) -> None:
        self._queue = ShardQueue()
        self._attempts = Attempts(limits)
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
        """No more shards come."""
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

    async def resize_bytes(self, shard: str, num_bytes: int) -> None:
        """See `BytesInFlight.resize`."""
        await self._bytes.resize(shard, num_bytes)

    async def claim_images(self, shard: str, sightings: Sequence[Sighting | None]) -> list[str | None] | None:
        """See `Duplicates.claim`."""
        return await self._duplicates.claim(shard, sightings)

    async def begin_attempt(self, shard: str) -> Attempt:
        """See `Attempts.begin`."""
        return self._attempts.begin(shard)

    async def set_alone(self, shard: str, image_id: str | None) -> None:
        """See `Attempts.set_alone`."""
        self._attempts.set_alone(shard, image_id)

    async def report_death(self, in_flight: Mapping[str, Sequence[str]], error: str) -> None:
        """See `Attempts.report_death`."""
        self._attempts.report_death(in_flight, error)

    async def give_up(self, failure: Any) -> None:
        """See `EndOfPass.give_up`."""
        self._end.give_up(failure)

    async def wait_for_failure(self) -> Any:
        """See `EndOfPass.wait`."""
        return await self._end.wait()

    async def end_shard(self, shard: str) -> None:
        """Free what a shard held that is committed or left."""
        self._attempts.forget(shard)
        await self._bytes.release(shard)
