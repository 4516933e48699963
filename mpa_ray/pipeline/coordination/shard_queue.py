"""The shards of a pass, as they become known."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from mpa_ray.pipeline.coordination.turns import POLL_S


class ShardQueue:
    """A list of shards that grows until it is closed. Readers keep their own position in it."""

    def __init__(self) -> None:
        self._shards: list[str] = []
        self._is_closed = False
        self._changed = asyncio.Condition()

    async def add(self, shard: str) -> None:
        """Append a shard."""
        async with self._changed:
            self._shards.append(shard)
            self._changed.notify_all()

    async def close(self) -> None:
        """End the list: no more shards are added."""
        async with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    async def read_from(self, index: int, wait_s: float = POLL_S) -> list[str] | None:
        """The shards from an index on.

        Returns:
            [] if there was no such shard within `wait_s` seconds; None if there never will be one.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(wait_s), self._changed:
                await self._changed.wait_for(lambda: self._is_closed or len(self._shards) > index)
        shards = self._shards[index:]
        return None if self._is_closed and not shards else shards
