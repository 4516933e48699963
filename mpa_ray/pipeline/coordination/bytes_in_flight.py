"""Limits the bytes of image files that have been read and whose shards are not committed yet."""

from __future__ import annotations

import asyncio

from mpa_ray.pipeline.coordination.turns import POLL_S, OrderedTurns


class BytesInFlight:
    """Leases of memory, one per shard, granted in the shards' order. A shard that is begun again keeps its lease."""

    def __init__(self, turns: OrderedTurns, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._leases: dict[str, int] = {}
        self._turns = turns
        self._changed = asyncio.Condition()
        self.peak = 0
        """The most bytes that were leased at the same time."""

    async def acquire(self, shard: str, num_bytes: int, wait_s: float = POLL_S) -> bool:
        """Take a lease. A shard that is larger than the limit gets its lease when no other shard has one.

        Returns:
            False if the lease was not granted within `wait_s` seconds: the caller must ask again.
        """
        if not await self._turns.wait(shard, wait_s):
            return False
        try:
            async with asyncio.timeout(wait_s), self._changed:
                await self._changed.wait_for(lambda: self._has_room(shard, num_bytes))
                self._lease(shard, num_bytes)
        except TimeoutError:
            return False
        await self._turns.finish(shard)
        return True

    async def resize(self, shard: str, num_bytes: int) -> None:
        """Replace the expected size of a shard's files with their actual size."""
        async with self._changed:
            self._lease(shard, num_bytes)
            self._changed.notify_all()

    async def release(self, shard: str) -> None:
        """Give the lease back."""
        async with self._changed:
            self._leases.pop(shard, None)
            self._changed.notify_all()

    def _has_room(self, shard: str, num_bytes: int) -> bool:
        return shard in self._leases or not self._leases or self._total() + num_bytes <= self._max_bytes

    def _lease(self, shard: str, num_bytes: int) -> None:
        self._leases[shard] = num_bytes
        self.peak = max(self.peak, self._total())

    def _total(self) -> int:
        return sum(self._leases.values())
