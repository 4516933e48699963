"""Shards take turns in the order of the corpus."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable

POLL_S = 10.0
"""How long a request to the coordinator waits before it must be repeated. Repeating it shows that the shard's worker is
alive."""
_MAX_SILENCE_S = 60.0
"""If the shard whose turn it is sends no request for this long, the node that reads this shard has probably died. The
other shards then no longer wait for this shard."""


class OrderedTurns:
    """Lets shards proceed in the order in which they were added."""

    def __init__(self, shards: Iterable[str] = (), max_silence_s: float = _MAX_SILENCE_S) -> None:
        self._index: dict[str, int] = {}
        self._is_done: list[bool] = []
        self._next = 0
        self._max_silence_s = max_silence_s
        self._last_seen: dict[int, float] = {}
        """By index, the time of the latest request from each waiting shard and from the shard whose turn it is."""
        self._changed = asyncio.Condition()
        for shard in shards:
            self.add(shard)

    def add(self, shard: str) -> None:
        """Append a shard to the order."""
        self._index[shard] = len(self._is_done)
        self._is_done.append(False)

    async def wait(self, shard: str, wait_s: float = POLL_S) -> bool:
        """Wait until it is the shard's turn.

        Returns:
            True once all shards before this shard are done. If they are not done after `wait_s` seconds, the result
            depends on the shard whose turn it is now: True if that shard has sent no request for too long, otherwise
            False. After False, the caller must ask again.
        """
        index, now = self._index[shard], time.monotonic()
        self._last_seen[index] = now
        self._last_seen.setdefault(self._next, now)
        try:
            async with asyncio.timeout(wait_s), self._changed:
                await self._changed.wait_for(lambda: self._next >= index)
        except TimeoutError:
            silence_s = time.monotonic() - self._last_seen.get(self._next, now)
            return silence_s > self._max_silence_s
        return True

    async def finish(self, shard: str) -> None:
        """End the shard's turn. Ending it again changes nothing."""
        async with self._changed:
            self._is_done[self._index[shard]] = True
            while self._next < len(self._is_done) and self._is_done[self._next]:
                self._last_seen.pop(self._next, None)
                self._next += 1
            self._changed.notify_all()
