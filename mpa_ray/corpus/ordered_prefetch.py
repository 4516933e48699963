"""Runs several iterators in threads at the same time, and yields all items of one iterator before those of the next."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import islice
from queue import Full, Queue
from typing import TypeVar

T = TypeVar("T")

_CHUNK = 1000
_CHUNKS_AHEAD = 4


def ordered_prefetch(makers: Iterable[Callable[[], Iterator[T]]], num_ahead: int) -> Iterator[T]:
    """Yield all items of the first iterator, then all items of the second, and so on.

    If an iterator raises an error, this function raises it after yielding all items of the earlier iterators.

    Args:
        makers: Functions that each make one iterator. Each function is called in the thread that runs its iterator.
        num_ahead: The number of iterators that run at a time. Each iterator runs at most a few thousand items ahead, so
            memory use is bounded.
    """
    queue = iter(makers)
    running = deque(_Prefetched(make) for make in islice(queue, num_ahead))
    try:
        while running:
            yield from running[0]
            running.popleft()
            running.extend(_Prefetched(make) for make in islice(queue, 1))
    finally:
        for prefetched in running:
            prefetched.stop()


class _Prefetched(Iterable[T]):
    """An iterator that runs ahead in a thread."""

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
            # Raise any error in the thread that reads the items, unless that thread has stopped reading.
            with suppress(_Stopped):
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
    """The reader of the items has stopped."""
