"""Progress of a command: one line every few seconds, readable in a terminal and in a job's log."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import TextIO

from mpa_ray.redaction import without_secrets
from mpa_ray.textual import readable


class Progress:
    """Counts towards a total and prints the count, the rate and the remaining time. Used as a context manager."""

    def __init__(
        self,
        label: str,
        total: int | None,
        unit: str,
        done: int = 0,
        every_s: float = 5.0,
        file: TextIO | None = None,
    ) -> None:
        """Begin to count.

        Args:
            label: Begins every line.
            total: The count at the end; None if it is not known yet.
            unit: What is counted, such as `images`.
            done: The count at the start.
            every_s: Seconds between two lines.
            file: Where lines go. By default standard output, with a line at the start and one at the end; otherwise
                there are only lines every `every_s` seconds.
        """
        self._label, self._total, self._unit, self._every_s = label, total, unit, every_s
        self._file = file
        self._done = self._done_at_start = done
        self._started = time.monotonic()
        self._first_count: float | None = None
        self._done_at_first_count = done
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep_printing, daemon=True)

    def __enter__(self) -> Progress:
        self._started = time.monotonic()
        before = f", {self._done} already done" if self._done else ""
        if self._total is not None and self._file is None:
            say(f"{self._label}: {self._total} {self._unit}{before}")
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        if kind is None and self._file is None:
            say(f"{self._label}: done in {clock(time.monotonic() - self._started)}{self._rate()}")

    def expect(self, total: int) -> None:
        """Set the total, once it is known."""
        self._total = total

    def advance(self, count: int) -> None:
        """Add to the count."""
        if self._first_count is None:
            # The time before the first count includes the start of an engine, so the rate leaves out both.
            self._first_count, self._done_at_first_count = time.monotonic(), self._done + count
        self._done += count

    def _keep_printing(self) -> None:
        while not self._ended.wait(self._every_s):
            say(self._line(), self._file)

    def _line(self) -> str:
        elapsed_s = time.monotonic() - self._started
        if self._first_count is None:
            return f"{self._label}: starting, {clock(elapsed_s)} so far"
        if self._total is None:
            return f"{self._label}: {self._done} {self._unit} so far{self._rate()}"
        share = self._done / self._total if self._total else 1.0
        left_s = (self._total - self._done) * self._seconds_per_unit(elapsed_s)
        counts = f"{self._done}/{self._total} {self._unit} ({share:.0%})"
        return f"{self._label}: {counts}{self._rate()}, {clock(left_s)} left"

    def _seconds_per_unit(self, elapsed_s: float) -> float:
        """Measured since the first count; before the second count, since the start."""
        since_first, new = self._done - self._done_at_first_count, self._done - self._done_at_start
        if since_first and self._first_count is not None:
            return (time.monotonic() - self._first_count) / since_first
        return elapsed_s / new if new else 0.0

    def _rate(self) -> str:
        """The rate as the end of a sentence; empty while it is not known."""
        new, elapsed_s = self._done - self._done_at_first_count, time.monotonic() - (self._first_count or self._started)
        return f", {new / elapsed_s:.1f} {self._unit}/s" if new and elapsed_s > 1 else ""


def clock(seconds: float) -> str:
    """Seconds as minutes and seconds, such as 2:05."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def say(line: str, file: TextIO | None = None) -> None:
    """Print a line at once, by default to standard output, with secrets hidden.

    If the reader of standard output has ended, as `head` does, the command ends: in the main thread by a
    BrokenPipeError, and in another thread by an interrupt of the main thread.
    """
    try:
        # With its line end in one call, since several threads and processes print.
        print(f"{readable(without_secrets(line))}\n", end="", file=file or sys.stdout, flush=True)
    except BrokenPipeError:
        main = threading.main_thread().ident
        if file is not None or main is None or threading.get_ident() == main:
            raise
        # Other threads must not interrupt again, and print until they are ended.
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115
        # `interrupt_main` would not wake a thread that waits.
        signal.pthread_kill(main, signal.SIGINT)
