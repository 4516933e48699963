"""Decides which phases of a campaign run beside each other on the cluster."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count


@dataclass(frozen=True)
class Resources:
    """CPUs and GPUs, as Ray counts them."""

    num_cpus: float
    num_gpus: float = 0.0

    def without(self, taken: Iterable[Resources]) -> Resources:
        """What is left, 0 where more is taken than there is."""
        others = list(taken)
        return Resources(
            max(0.0, self.num_cpus - sum(other.num_cpus for other in others)),
            max(0.0, self.num_gpus - sum(other.num_gpus for other in others)),
        )

    def holds(self, other: Resources) -> bool:
        """Does the other fit in? Sums of fractions are off by a little."""
        return other.num_cpus <= self.num_cpus + 1e-6 and other.num_gpus <= self.num_gpus + 1e-6


_POLL_S = 5.0
"""How often the cluster's capacity is read while phases wait."""


@dataclass(frozen=True)
class _Waiting:
    need: Resources
    size: float
    order: int


class AdmissionController:
    """Lets steps in while the cluster has room for them: the longest first, and smaller ones where it doesn't fit.

    What needs more than the cluster has comes in when nothing else runs; Ray then tells what is lacking, or gets it.
    """

    def __init__(self, capacity: Callable[[], Resources], max_running: int | None = None) -> None:
        """`capacity` is asked again and again, for nodes come and go; with `max_running` that alone counts."""
        self._capacity, self._max_running = capacity, max_running
        self._changed = threading.Condition()
        self._waiting: list[_Waiting] = []
        self._running: list[Resources] = []
        self._orders = count()

    @contextmanager
    def admitted(self, need: Resources, size: float = 0.0) -> Iterator[None]:
        """Wait for room, and take it as long as the block runs.

        Args:
            need: What the step takes of the cluster.
            size: How long it takes, in any unit; of steps that wait, the larger come first.
        """
        entry = _Waiting(need, size, next(self._orders))
        with self._changed:
            self._waiting.append(entry)
            try:
                while not self._is_next(entry):
                    self._changed.wait(_POLL_S)
            finally:
                self._waiting.remove(entry)
                self._changed.notify_all()
            self._running.append(need)
        try:
            yield
        finally:
            with self._changed:
                self._running.remove(need)
                self._changed.notify_all()

    def _is_next(self, entry: _Waiting) -> bool:
        in_order = sorted(self._waiting, key=lambda waiting: (-waiting.size, waiting.order))
        if self._max_running is not None:
            return len(self._running) < self._max_running and in_order[0] is entry
        free = self._capacity().without(self._running)
        fitting = [waiting for waiting in in_order if free.holds(waiting.need)]
        if not fitting and not self._running:
            return in_order[0] is entry
        return bool(fitting) and fitting[0] is entry
