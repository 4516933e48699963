"""Deadlines for calls that may hang, such as reads from a server that does not answer or from a dead mount."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextvars import Context, copy_context
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

T = TypeVar("T")

THREAD_NAME = "read with deadline"
_GRACE_S = 1.0
"""How much later than the call itself the caller gives up. The call's own error says more."""


def call_with_deadline(call: Callable[[], T], deadline_s: float, name: str) -> T:
    """Run a call in another thread, and return its result or raise its error.

    A call that has not returned by the deadline is left to itself: its thread ends when the call does, which for a
    thread in the kernel may be never. Threads are reused and never keep the process from ending.

    Args:
        call: What to run. It may use `Expiry.current`.
        deadline_s: Seconds until the call expires.
        name: What the call reads, for the error message.

    Raises:
        TimeoutError: the call did not return in time.
    """
    job = _Job(call, Expiry(time.monotonic() + deadline_s))
    _submit(job)
    if not job.done.wait(deadline_s + _GRACE_S):
        job.expiry.expire()
        raise TimeoutError(f"{name}: not read within {deadline_s:g} s")
    if job.error is not None:
        raise job.error
    return job.result


class Expiry:
    """When a call expires, and what ends its blocked reads then."""

    def __init__(self, at: float) -> None:
        self._at = at
        self._cut_off: Callable[[], None] | None = None

    @classmethod
    def current(cls) -> Expiry:
        """The expiry of the call that runs in this thread; of one without a deadline if there is none."""
        expiry: Expiry | None = getattr(_running, "expiry", None)
        return expiry or cls(float("inf"))

    def check(self, name: str, num_bytes: int) -> None:
        """Raise TimeoutError if the call has expired.

        Args:
            name: What the call reads, for the error message.
            num_bytes: How much of it the call has read.
        """
        if time.monotonic() > self._at:
            raise TimeoutError(f"{name}: only {num_bytes} bytes came before the deadline")

    def on_expiry(self, cut_off: Callable[[], None]) -> None:
        """Call a function at the deadline, from another thread. It replaces the function of the previous call."""
        self._cut_off = cut_off

    def expire(self) -> None:
        """Call the function that `on_expiry` registered."""
        if self._cut_off is not None:
            self._cut_off()


class _Job(Generic[T]):
    """A call, and its result or its error."""

    result: T

    def __init__(self, call: Callable[[], T], expiry: Expiry) -> None:
        self._call, self.expiry = call, expiry
        self._context: Context = copy_context()
        self.error: BaseException | None = None
        self.done = threading.Event()

    def run(self) -> None:
        _running.expiry = self.expiry
        try:
            self.result = self._context.run(self._call)
        except BaseException as error:  # noqa: BLE001
            # Raise any error in the thread that waits for the result.
            self.error = error
        finally:
            _running.expiry = None
            self.done.set()


def _submit(job: _Job[Any]) -> None:
    try:
        jobs = _idle.pop()
    except IndexError:
        jobs = SimpleQueue()
        threading.Thread(target=_work, args=(jobs,), name=THREAD_NAME, daemon=True).start()
    jobs.put(job)


def _work(jobs: SimpleQueue[_Job[Any]]) -> None:
    while True:
        jobs.get().run()
        _idle.append(jobs)


_running = threading.local()
_idle: list[SimpleQueue[_Job[Any]]] = []
"""The queues of threads that have nothing to do."""
# A forked process has none of the threads.
os.register_at_fork(after_in_child=_idle.clear)
