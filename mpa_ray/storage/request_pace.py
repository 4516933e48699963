"""Limits how fast a process sends requests to a store. If the store asks for a pause, all threads of the process
pause."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mpa_ray.errors import TransientError
from mpa_ray.storage.faults import Fault

_FIRST_CONTACT_S = 3.0
_first_contact = threading.Event()


@contextmanager
def short_first_contact() -> Iterator[None]:
    """Within the block, a request fails after a few seconds if no connection is possible and the store has never
    answered.

    A command uses this in its own process, which checks the settings first, to report a wrong setting soon. The
    command's workers repeat requests as usual.
    """
    _first_contact.set()
    try:
        yield
    finally:
        _first_contact.clear()


class Outage(Exception):
    """A new request was not sent, because no request has succeeded for `max_outage_s` seconds."""


class RequestPace:
    """Limits the requests in flight, pauses all requests when the store asks for fewer, and lets requests fail in an
    outage.

    When the store asks for a pause, the number of requests that may be in flight is halved; every success raises it
    again. In an outage, one request is sent after each pause, to find the end of the outage; the others fail
    immediately.
    """

    def __init__(
        self,
        max_requests: int,
        first_pause_s: float,
        max_pause_s: float,
        max_outage_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin without a pause, and with `max_requests` requests that may be in flight."""
        self._max_requests, self._first_pause_s, self._max_pause_s = max_requests, first_pause_s, max_pause_s
        self._max_outage_s, self._clock = max_outage_s, clock
        self._changed = threading.Condition()
        self._allowed = float(max_requests)
        self._num_in_flight = 0
        self._pause_s = 0.0
        self._resume_at = 0.0
        self.has_answered = False
        """Whether the store has ever answered this process."""
        self._failing_since: float | None = None
        """The time of the first failure since the last success; None if there was no failure."""

    @contextmanager
    def request(self) -> Iterator[None]:
        """Wait until a request may be sent. The request counts as in flight while the block runs.

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
            fault: The class of the error. Any class except SLOW_DOWN and TRANSIENT counts as an answer of the store,
                which ends an outage.
            retry_after_s: The pause that the store asks for.
        """
        if fault is Fault.SLOW_DOWN:
            self.slow_down(retry_after_s)
        elif fault is Fault.TRANSIENT:
            self.fail()
        else:
            self.succeed()

    def slow_down(self, at_least_s: float = 0.0) -> None:
        """Pause all requests. A running pause is not extended, because many responses may ask for the same pause.

        Args:
            at_least_s: The pause that the store asks for.
        """
        with self._changed:
            self.has_answered = True
            self._record_failure()
            if self._clock() >= self._resume_at:
                self._pause(at_least_s)
                self._allowed = max(1.0, self._allowed / 2)

    def fail(self) -> None:
        """Record a request that failed with a transient error."""
        with self._changed:
            self._record_failure()
            if self.is_out() and self._clock() >= self._resume_at:
                self._pause(self._max_pause_s)
                self._allowed = 1.0

    def succeed(self) -> None:
        """Record an answer of the store: the next pause is shorter, and more requests may be in flight."""
        with self._changed:
            self.has_answered = True
            self._failing_since = None
            self._pause_s /= 2
            self._allowed = min(float(self._max_requests), self._allowed + 1 / self._allowed)
            self._changed.notify_all()

    def is_out(self) -> bool:
        """Whether no request has succeeded for `max_outage_s` seconds, although some were sent."""
        return self._failing_since is not None and self._clock() - self._failing_since > self._max_outage_s

    def check_first_contact(self, name: str, error: Exception, elapsed_s: float) -> None:
        """Raise TransientError if a request that could not connect should not be repeated.

        See `short_first_contact`.
        """
        if _first_contact.is_set() and not self.has_answered and elapsed_s > _FIRST_CONTACT_S:
            raise TransientError(f"{name}: {error} (no response within {_FIRST_CONTACT_S:g} s)") from error

    def _record_failure(self) -> None:
        if self._failing_since is None:
            self._failing_since = self._clock()

    def _pause(self, at_least_s: float) -> None:
        self._pause_s = min(self._max_pause_s, max(self._first_pause_s, 2 * self._pause_s, at_least_s))
        # The length is random, so that processes which got the same answer do not all resume at the same time.
        self._resume_at = self._clock() + random.uniform(0.75, 1.0) * self._pause_s

    def _wait_s(self) -> float | None:
        """Return the seconds after which to check again; None if a request may be sent now."""
        pause_s = self._resume_at - self._clock()
        if pause_s > 0:
            return pause_s
        return self._max_pause_s if self._num_in_flight >= int(self._allowed) else None
