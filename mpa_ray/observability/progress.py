"""What a user sees while waiting: one line every few seconds, readable in a terminal and in a job's log."""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType
from typing import TextIO


class Progress:
    """Counts towards a total and prints rate and time left; says that it waits until the first count comes."""

    def __init__(
        self,
        label: str,
        total: int | None,
        unit: str,
        done: int = 0,
        every_s: float = 5.0,
        to: TextIO | None = None,
    ) -> None:
        """Lines go to standard output; to `to` only where it takes longer than `every_s`."""
        self._to = to
        self._label, self._total, self._unit, self._every_s = label, total, unit, every_s
        self._done = self._done_before = done
        self._started = time.monotonic()
        self._first: float | None = None
        self._rated_from = done
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep_printing, daemon=True)

    def __enter__(self) -> Progress:
        self._started = time.monotonic()
        before = f", {self._done} already done" if self._done else ""
        if self._total is not None and self._to is None:
            say(f"{self._label}: {self._total} {self._unit}{before}")
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        if kind is None and self._to is None:
            say(f"{self._label}: done in {clock(time.monotonic() - self._started)}{self._rate()}")

    def expect(self, total: int) -> None:
        """The total has become known."""
        self._total = total

    def advance(self, count: int) -> None:
        if self._first is None:
            # What came before the first count is in part the start of an engine: the rate leaves both out.
            self._first, self._rated_from = time.monotonic(), self._done + count
        self._done += count

    def _keep_printing(self) -> None:
        while not self._ended.wait(self._every_s):
            say(self._line(), self._to)

    def _line(self) -> str:
        waited = time.monotonic() - self._started
        if self._first is None:
            return f"{self._label}: starting, {clock(waited)} so far"
        if self._total is None:
            return f"{self._label}: {self._done} {self._unit} so far{self._rate()}"
        share = self._done / self._total if self._total else 1.0
        left = (self._total - self._done) * self._seconds_each(waited)
        return f"{self._label}: {self._done}/{self._total} {self._unit} ({share:.0%}){self._rate()}, {clock(left)} left"

    def _seconds_each(self, waited: float) -> float:
        """By what was counted since the first count, or, as long as that is nothing, by all the time there was."""
        since_first, new = self._done - self._rated_from, self._done - self._done_before
        if since_first and self._first is not None:
            return (time.monotonic() - self._first) / since_first
        return waited / new if new else 0.0

    def _rate(self) -> str:
        new, spent = self._done - self._rated_from, time.monotonic() - (self._first or self._started)
        return f", {new / spent:.1f} {self._unit}/s" if new and spent > 1 else ""


def clock(seconds: float) -> str:
    """Seconds as minutes and seconds, such as 2:05."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def say(line: str, to: TextIO | None = None) -> None:
    """Print a line at once, to standard output unless told otherwise."""
    # In one piece: threads and workers write beside each other.
    print(f"{line}\n", end="", file=to or sys.stdout, flush=True)
