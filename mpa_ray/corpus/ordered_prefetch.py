"""Several iterators run ahead side by side, and are read one after the other."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from queue import Full, Queue
from typing import TypeVar

T = TypeVar("T")

_CHUNK = 1000
_CHUNKS_AHEAD = 4


def in_order(makers: Iterable[Callable[[], Iterator[T]]], num_ahead: int) -> Iterator[T]:
    """Everything of the first iterator, then of the second, and so on; `num_ahead` of them run in threads of their own.

    Each runs a few thousand items ahead at most, so memory is bounded however long they are. What an iterator raises is
    raised in its place.
    """
    queue = iter(makers)
    running = deque(_Ahead(make) for make in islice(queue, num_ahead))
    try:
        while running:
            yield from running[0]
            running.popleft()
            running.extend(_Ahead(make) for make in islice(queue, 1))
    finally:
        for ahead in running:
            ahead.stop()


class _Ahead(Iterable[T]):
    """One iterator in a thread."""

    def __init__(self, make: Callable[[], Iterator[T]]) -> None:
        self._chunks: Queue[list[T] | BaseException] = Queue(_CHUNKS_AHEAD)
        self._stopped = threading.Event()
        threading.Thread(target=self._run, args=(make,), daemon=True).start()

    def __iter__(self) -> Iterator[T]:
        while chunk := self._chunks.get():
            if isinstance(chunk, BaseException):
                raise chunk
            yield from chunk

    def stop(self) -> None:
        self._stopped.set()

    def _run(self, make: Callable[[], Iterator[T]]) -> None:
        try:
            items = make()
            while chunk := list(islice(items, _CHUNK)):
                self._put(chunk)
            self._put([])
        except _Stopped:
            return
        except Exception as error:  # noqa: BLE001
            # Any error belongs to whoever reads the items, in that thread.
            self._put(error)

    def _put(self, chunk: list[T] | BaseException) -> None:
        while not self._stopped.is_set():
            try:
                self._chunks.put(chunk, timeout=0.2)
            except Full:
                continue
            return
        raise _Stopped


class _Stopped(Exception):
    """Nobody reads on."""
