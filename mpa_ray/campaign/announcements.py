"""Tells a campaign's students which shards are annotated."""

from __future__ import annotations

import threading
from collections.abc import Iterator


class ShardAnnouncements:
    """Shards in the order in which they were announced, for any number of followers, each from the first on."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._shards: list[str] = []
        self._is_over = False
        self._error: BaseException | None = None

    def announce(self, shard: str) -> None:
        with self._changed:
            self._shards.append(shard)
            self._changed.notify_all()

    def end(self, error: BaseException | None = None) -> None:
        """There are no more; followers that have had all raise the error, if there is one."""
        with self._changed:
            self._is_over, self._error = True, error
            self._changed.notify_all()

    def __iter__(self) -> Iterator[str]:
        place = 0
        while True:
            with self._changed:
                while place == len(self._shards) and not self._is_over:
                    self._changed.wait()
                if place == len(self._shards):
                    if self._error is not None:
                        raise self._error
                    return
                shard = self._shards[place]
            place += 1
            yield shard
