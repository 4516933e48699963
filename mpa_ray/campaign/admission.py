"""Decide which phases of a campaign run at the same time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count

_POLL_S = 5.0
"""Seconds between two checks of the cluster's size, while phases wait."""
_MAX_OVERTAKEN = 8
"""How many phases that arrived later may be admitted before a waiting phase."""
_ROUNDING = 1e-6
"""Tolerance for rounding errors in a sum of fractions of CPUs or GPUs."""


@dataclass(frozen=True)
class Resources:
    """CPUs and GPUs, as Ray counts them."""

    num_cpus: float
    num_gpus: float = 0.0

    def without(self, used: Iterable[Resources]) -> Resources:
        """Subtract the used resources; return what is left, at least 0 of each kind."""
        others = list(used)
        return Resources(
            max(0.0, self.num_cpus - sum(other.num_cpus for other in others)),
            max(0.0, self.num_gpus - sum(other.num_gpus for other in others)),
        )

    def has_room_for(self, other: Resources) -> bool:
        """Whether these resources are enough for `other`."""
        return other.num_cpus <= self.num_cpus + _ROUNDING and other.num_gpus <= self.num_gpus + _ROUNDING


@dataclass(eq=False)
class _Waiting:
    """A phase that waits to be admitted."""

    need: Resources
    size: float
    arrival: int
    num_overtaken: int = 0
    """The number of phases that arrived after this one and were admitted before it."""


class AdmissionController:
    """Admits each phase as soon as the cluster has room for it. Among waiting phases that fit, the longest is first.

    Phases that fit earlier may overtake a phase that needs many resources. Once `_MAX_OVERTAKEN` phases have overtaken
    a phase, no other phase is admitted until enough running phases have ended for this phase to fit. A phase that needs
    more than the whole cluster is admitted when no other phase runs. Ray then waits for an autoscaler to add nodes, or
    reports which resources are missing.
    """

    def __init__(
        self, capacity: Callable[[], Resources], max_running: int | None = None, poll_s: float = _POLL_S
    ) -> None:
        """Make a controller that has admitted no phase yet.

        Args:
            capacity: The resources of the cluster now; called repeatedly, since nodes come and go.
            max_running: The number of phases that may run at a time, regardless of the cluster's resources. None lets
                the resources decide.
            poll_s: Seconds between two calls to `capacity` while phases wait.
        """
        self._capacity, self._max_running, self._poll_s = capacity, max_running, poll_s
        self._changed = threading.Condition()
        self._waiting: list[_Waiting] = []
        self._running: list[Resources] = []
        self._arrivals = count()

    @contextmanager
    def admitted(self, need: Resources, size: float = 0.0) -> Iterator[None]:
        """Wait until the phase is admitted, and hold its resources while the block runs.

        Args:
            need: The resources that the phase takes.
            size: A measure of the phase's duration, in any unit. Among waiting phases, the one with the largest size is
                admitted first.
        """
        entry = _Waiting(need, size, next(self._arrivals))
        with self._changed:
            self._waiting.append(entry)
            try:
                while not self._is_next(entry):
                    self._changed.wait(self._poll_s)
            finally:
                self._waiting.remove(entry)
                self._changed.notify_all()
            for waiting in self._waiting:
                waiting.num_overtaken += waiting.arrival < entry.arrival
            self._running.append(need)
        try:
            yield
        finally:
            with self._changed:
                self._running.remove(need)
                self._changed.notify_all()

    def _is_next(self, entry: _Waiting) -> bool:
        overdue = [waiting for waiting in self._waiting if waiting.num_overtaken >= _MAX_OVERTAKEN]
        if overdue:
            return self._fits(entry) and entry.arrival == min(waiting.arrival for waiting in overdue)
        in_order = sorted(self._waiting, key=lambda waiting: (-waiting.size, waiting.arrival))
        if self._max_running is not None:
            return len(self._running) < self._max_running and in_order[0] is entry
        free = self._capacity().without(self._running)
        fitting = [waiting for waiting in in_order if free.has_room_for(waiting.need)]
        if not fitting and not self._running:
            return in_order[0] is entry
        return bool(fitting) and fitting[0] is entry

    def _fits(self, entry: _Waiting) -> bool:
        """Whether a phase can be admitted now, regardless of the other waiting phases."""
        if not self._running:
            return True
        if self._max_running is not None:
            return len(self._running) < self._max_running
        return self._capacity().without(self._running).has_room_for(entry.need)
