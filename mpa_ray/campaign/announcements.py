"""Announce annotated shards to the students of a campaign."""

from __future__ import annotations

import threading
from collections.abc import Iterator


class ShardAnnouncements:
    """Shards in the order of their announcement. Any number of threads may iterate; every thread gets all shards."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._shards: list[str] = []
        self._is_over = False
        self._error: BaseException | None = None

    def announce(self, shard: str) -> None:
        """Append a shard."""
        with self._changed:
            self._shards.append(shard)
            self._changed.notify_all()

    def end(self, error: BaseException | None = None) -> None:
        """End all iterations after the last announced shard. If there is an error, every iteration then raises it."""
        with self._changed:
            self._is_over, self._error = True, error
            self._changed.notify_all()

    def __iter__(self) -> Iterator[str]:
        """Yield the announced shards, and wait for further ones. Raises the error that was passed to `end`."""
        index = 0
        while True:
            with self._changed:
                while index == len(self._shards) and not self._is_over:
                    self._changed.wait()
                if index == len(self._shards):
                    if self._error is not None:
                        raise self._error
                    return
                shard = self._shards[index]
            index += 1
            yield shard
