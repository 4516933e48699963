"""How fast a process may send requests to a store: slow-downs and outages are shared by all of its threads."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mpa_ray.storage.faults import Fault


class Outage(Exception):
    """No request has succeeded for too long, so this one was not sent."""


class RequestPace:
    """Bounds the requests in flight, pauses all of them when the store asks for fewer, and ends waits in an outage.

    Every pause halves the number of concurrent requests; every success raises it again. In an outage, only one request
    is sent after each pause, to find its end; the others fail at once.
    """

    def __init__(
        self,
        max_requests: int,
        first_pause_s: float,
        max_pause_s: float,
        max_outage_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin at full pace."""
        self._max_requests, self._first_pause_s, self._max_pause_s = max_requests, first_pause_s, max_pause_s
        self._max_outage_s, self._clock = max_outage_s, clock
        self._changed = threading.Condition()
        self._allowed = float(max_requests)
        self._num_in_flight = 0
        self._pause_s = 0.0
        self._resume_at = 0.0
        self._failing_since: float | None = None
        """When the first request after the last success failed."""

    @contextmanager
    def request(self) -> Iterator[None]:
        """Wait until a request may be sent; the request is in flight in the block.

        Raises:
            Outage: no request has succeeded for `max_outage_s` seconds.
        """
        with self._changed:
            while (wait_s := self._wait_s()) is not None:
                if self.is_out():
                    raise Outage(f"no request has succeeded for {self._max_outage_s:g} s")
                self._changed.wait(wait_s)
            self._num_in_flight += 1
        try:
            yield
        finally:
            with self._changed:
                self._num_in_flight -= 1
                self._changed.notify_all()

    def record(self, fault: Fault, retry_after_s: float) -> None:
        """Record a request's error. Call it while the request is in flight.

        Args:
            fault: What the error means. An error that will never pass is an answer, so it ends an outage.
            retry_after_s: How long the store wants to be left alone.
        """
        if fault is Fault.SLOW_DOWN:
            self.slow_down(retry_after_s)
        elif fault is Fault.TRANSIENT:
            self.fail()
        else:
            self.succeed()

    def slow_down(self, at_least_s: float = 0.0) -> None:
        """Pause all requests, unless a pause has begun since they were sent: many answers may ask for the same one.

        Args:
            at_least_s: How long the store wants to be left alone.
        """
        with self._changed:
            self._record_failure()
            if self._clock() >= self._resume_at:
                self._pause(at_least_s)
                self._allowed = max(1.0, self._allowed / 2)

    def fail(self) -> None:
        """Record a request that failed for another reason that may pass."""
        with self._changed:
            self._record_failure()
            if self.is_out() and self._clock() >= self._resume_at:
                self._pause(self._max_pause_s)
                self._allowed = 1.0

    def succeed(self) -> None:
        """Record an answer: the next pause is shorter, and more requests may be in flight."""
        with self._changed:
            self._failing_since = None
            self._pause_s /= 2
            self._allowed = min(float(self._max_requests), self._allowed + 1 / self._allowed)
            self._changed.notify_all()

    def is_out(self) -> bool:
        """Whether no request has succeeded for `max_outage_s` seconds, although some were sent."""
        return self._failing_since is not None and self._clock() - self._failing_since > self._max_outage_s

    def _record_failure(self) -> None:
        if self._failing_since is None:
            self._failing_since = self._clock()

    def _pause(self, at_least_s: float) -> None:
        self._pause_s = min(self._max_pause_s, max(self._first_pause_s, 2 * self._pause_s, at_least_s))
        # Other processes got the same answer at the same time.
        self._resume_at = self._clock() + random.uniform(0.75, 1.0) * self._pause_s

    def _wait_s(self) -> float | None:
        """Seconds after which to look again; None if a request may be sent."""
        pause_s = self._resume_at - self._clock()
        if pause_s > 0:
            return pause_s
        return self._max_pause_s if self._num_in_flight >= int(self._allowed) else None
