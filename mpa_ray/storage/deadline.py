"""Deadlines for calls that may hang, such as reads from a server that does not answer or from a dead mount.

A call runs in a thread of this module. A call that does not return by its deadline is abandoned. Its thread goes on
waiting for the call, forever if the call is stuck in the kernel. Threads are reused. They never keep the process from
ending.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable
from contextvars import Context, copy_context
from itertools import islice
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar, cast

T = TypeVar("T")

THREAD_NAME = "read with deadline"
_GRACE_S = 1.0
"""How long the caller still waits after the deadline, because the error that the call itself raises is more precise."""


def call_with_deadline(call: Callable[[], T], deadline_s: float, name: str) -> T:
    """Run a call, and return its result or raise its error.

    Usually, the call runs in a thread of this module. If such a call uses this function again, the inner call runs in
    the same thread, and the deadline of the outer call is replaced by that of the inner call.

    Args:
        call: What to run. It may use `Expiry.current`.
        deadline_s: Seconds until the call expires.
        name: What the call reads, for the error message.

    Raises:
        TimeoutError: the call did not return in time.
    """
    current: Expiry | None = getattr(_running, "expiry", None)
    if current is not None:
        current.renew(deadline_s, name)
        return call()
    (result,) = call_each([call], 1, deadline_s, name)
    if isinstance(result, TimeoutError):
        raise result
    return result


def call_each(
    calls: Iterable[Callable[[], T]], max_running: int, deadline_s: float, name: str = "a read"
) -> list[T | TimeoutError]:
    """Run calls concurrently, and return their results in the order of the calls.

    The result of a call that does not return in time is a TimeoutError. After `max_running` such calls, the remaining
    calls are not made, because the storage seems not to answer. Their results are TimeoutErrors, too. If a call raises
    an error, this function raises it, and the results of the other calls are lost.

    Args:
        calls: What to run.
        max_running: The number of calls that run at a time.
        deadline_s: Seconds until a call expires. A call may renew its deadline with `call_with_deadline`.
        name: What the calls read, for error messages.
    """
    results: dict[int, T | TimeoutError] = {}
    queue = enumerate(calls)
    done: SimpleQueue[_Job[T]] = SimpleQueue()
    running: dict[int, _Job[T]] = {}
    num_expired = 0

    def start(number: int, call: Callable[[], T]) -> None:
        running[number] = _Job(number, call, Expiry(deadline_s, name), done)
        _submit(running[number])

    for number, call in islice(queue, max_running):
        start(number, call)
    while running:
        job = _next_done(done, running)
        if running.pop(job.number, None) is None:
            # The job was abandoned at its deadline, and already has its result.
            continue
        num_expired += job.expiry.is_over()
        results[job.number] = job.outcome()
        for number, call in islice(queue, 1 if num_expired < max_running else 0):
            start(number, call)
    given_up = TimeoutError(f"{name}: not tried, because {num_expired} earlier reads timed out")
    results.update((number, given_up) for number, _ in queue)
    return [results[number] for number in range(len(results))]


class Expiry:
    """The deadline of a call, and a function that ends the call's blocked reads at the deadline."""

    def __init__(self, deadline_s: float, name: str) -> None:
        self._cut_off: Callable[[], None] | None = None
        self.renew(deadline_s, name)

    @classmethod
    def current(cls) -> Expiry:
        """Return the expiry of the call that runs in this thread; if no call does, return an expiry without a
        deadline."""
        expiry: Expiry | None = getattr(_running, "expiry", None)
        return expiry or cls(float("inf"), "")

    def renew(self, deadline_s: float, name: str) -> None:
        """Let the call expire `deadline_s` seconds from now."""
        self._deadline_s, self._name, self._cut_off = deadline_s, name, None
        self._at = time.monotonic() + deadline_s

    def check(self, name: str, num_bytes: int) -> None:
        """Raise TimeoutError if the call has expired.

        Args:
            name: What the call reads, for the error message.
            num_bytes: The number of bytes that the call has read.
        """
        if self.is_over():
            raise TimeoutError(f"{name}: only {num_bytes} bytes were received within {self._deadline_s:g} s")

    def is_over(self) -> bool:
        """Whether the call has expired."""
        return time.monotonic() > self._at

    def remaining_s(self) -> float:
        """Seconds until the caller gives up."""
        return self._at + _GRACE_S - time.monotonic()

    def on_expiry(self, cut_off: Callable[[], None]) -> None:
        """Set the function to call at the deadline, from another thread. It replaces the previous function."""
        self._cut_off = cut_off

    def expire(self) -> TimeoutError:
        """Cut off the call's reads, and return the TimeoutError that is the result of the call."""
        if self._cut_off is not None:
            self._cut_off()
        return TimeoutError(f"{self._name}: not read within {self._deadline_s:g} s")


class _Job(Generic[T]):
    """A call, and its result or its error."""

    def __init__(self, number: int, call: Callable[[], T], expiry: Expiry, done: SimpleQueue[_Job[T]]) -> None:
        self.number, self._call, self.expiry, self._done = number, call, expiry, done
        self._context: Context = copy_context()
        self._result: T | None = None
        self._error: BaseException | None = None
        self._is_abandoned = False

    def run(self) -> None:
        _running.expiry = self.expiry
        try:
            self._result = self._context.run(self._call)
        except BaseException as error:  # noqa: BLE001
            # Raise any error in the thread that waits for the result.
            self._error = error
        finally:
            _running.expiry = None

    def finish(self) -> None:
        self._done.put(self)

    def abandon(self) -> None:
        self._is_abandoned = True

    def outcome(self) -> T | TimeoutError:
        """Return the result of the call, or raise its error. If the job was abandoned, return a TimeoutError."""
        if self._is_abandoned:
            return self.expiry.expire()
        if self._error is not None:
            raise self._error
        return cast(T, self._result)


def _next_done(done: SimpleQueue[_Job[T]], running: dict[int, _Job[T]]) -> _Job[T]:
    """Wait until a job is done, or until the deadline of a running job has passed. Return that job."""
    while True:
        first = min(running.values(), key=lambda job: job.expiry.remaining_s())
        try:
            return done.get(timeout=max(0.0, min(first.expiry.remaining_s(), threading.TIMEOUT_MAX)))
        except Empty:
            if first.expiry.remaining_s() <= 0:
                first.abandon()
                return first


def _submit(job: _Job[Any]) -> None:
    try:
        jobs = _idle.pop()
    except IndexError:
        jobs = SimpleQueue()
        threading.Thread(target=_work, args=(jobs,), name=THREAD_NAME, daemon=True).start()
    jobs.put(job)


def _work(jobs: SimpleQueue[_Job[Any]]) -> None:
    while True:
        job = jobs.get()
        job.run()
        # Mark the thread as idle before the caller gets the result, so that the caller's next call can use the thread.
        _idle.append(jobs)
        job.finish()
        del job


_running = threading.local()
_idle: list[SimpleQueue[_Job[Any]]] = []
"""The queues of threads that have nothing to do."""
# A forked process does not inherit the threads.
os.register_at_fork(after_in_child=_idle.clear)
