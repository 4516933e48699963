"""Calls that wait for the storage, several at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

T = TypeVar("T")

_NUM_THREADS = 16


def prefetch(read: Callable[[str], T], shards: Iterable[str]) -> Iterator[T]:
    """Call a function for each shard and yield the results in order.

    Threads run some calls ahead, because the calls mostly wait for the storage.
    """
    queue = iter(shards)
    with ThreadPoolExecutor(_NUM_THREADS) as threads:
        running = deque(threads.submit(read, shard) for shard in islice(queue, 2 * _NUM_THREADS))
        while running:
            yield running.popleft().result()
            running.extend(threads.submit(read, shard) for shard in islice(queue, 1))
