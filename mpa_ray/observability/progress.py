"""Show the progress of a command: in an updating line on a terminal, elsewhere by printing a line every few seconds."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TextIO

from mpa_ray.observability.library_output import LIBRARY_OUTPUT
from mpa_ray.observability.rate import format_rate, per_second
from mpa_ray.observability.status_line import StatusLine
from mpa_ray.redaction import without_secrets
from mpa_ray.textual import readable

STABLE_COUNTS = 4
"""The remaining time is shown once the count has advanced this many times, but not in the first `STABLE_S` seconds
after it first advanced."""
STABLE_S = 15.0

_status_line = StatusLine()


class Progress:
    """A context manager that counts towards a total and shows the count, the rate and the remaining time.

    On a terminal, all instances share one updating line. Elsewhere, each instance prints a line every few seconds.
    """

    def __init__(
        self,
        label: str,
        total: int | None,
        unit: str,
        done: int = 0,
        every_s: float = 5.0,
        to_stderr: bool = False,
        says_end: bool = True,
        is_limit: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Set the initial count. Nothing is shown before `__enter__`.

        Args:
            label: The text at the start of every line.
            total: The expected count at the end; None if it is not known yet.
            unit: What is counted, such as `images`.
            done: The count at the start.
            every_s: Seconds between two printed lines, if there is no updating line.
            to_stderr: Show the progress on standard error, without a first and a last line. By default, it goes to
                standard output, with both.
            says_end: Whether to print the last line.
            is_limit: Whether `total` is only an upper limit of the count.
            clock: Returns the time in seconds.
        """
        self._most = "at most " if is_limit else ""
        self._label, self._total, self._unit, self._every_s = label, total, unit, every_s
        self._to_stderr, self._says_end, self._clock = to_stderr, says_end and not to_stderr, clock
        self._done = self._done_at_start = done
        self._started = clock()
        self._num_counts = 0
        self._first_counted: float | None = None
        self._measured_rate: float | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep_printing, daemon=True)

    def __enter__(self) -> Progress:
        self._started = self._clock()
        if _status_line.add(self, _stream(self._to_stderr)):
            return self
        before = f", {self._done} already done" if self._done else ""
        if self._total is not None and not self._to_stderr:
            say(f"{self._label}: {self._most}{self._total} {self._unit}{before}")
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        _status_line.remove(self)
        if self._thread.is_alive():
            self._thread.join()
        if kind is None and self._says_end:
            say(self._last_line())

    def expect(self, total: int) -> None:
        """Set the total, once it is known."""
        self._total = total

    def advance(self, count: int, rate: float | None = None) -> None:
        """Add to the count.

        Args:
            count: The number to add.
            rate: The rate so far, in units per second of work, if the caller measures it. Only a measured rate is
                shown. Without one, the remaining time is estimated from the time since the start.
        """
        if self._first_counted is None:
            self._first_counted = self._clock()
        self._num_counts += 1
        self._done += count
        self._measured_rate = rate

    def line(self) -> str:
        """Return the label with the count, the rate, and the remaining time if the rate is stable."""
        if self._first_counted is None:
            return f"{self._label}: starting, {clock(self._elapsed_s)} so far"
        rate = "" if self._measured_rate is None else f", {format_rate(self._measured_rate)} {self._unit}/s"
        return f"{self._label}: {self._counts()}{rate}{self._left()}"

    def short_line(self) -> str:
        """Return the label with the count alone, as a percentage of the total if that is known."""
        if self._first_counted is None:
            return f"{self._label}: starting"
        return f"{self._label}: {self._done}" if self._total is None else f"{self._label}: {self._share:.0%}"

    def _keep_printing(self) -> None:
        last = ""
        while not self._ended.wait(self._every_s):
            line = self.line()
            # The time shows that the command still works, for example while it exports a student.
            repeated = f"{line}, {clock(self._elapsed_s)} so far" if line == last else line
            (say_error if self._to_stderr else say)(repeated)
            last = line

    def _last_line(self) -> str:
        line = f"{self._label}: done, {self._done} {self._unit} in {clock(self._elapsed_s)}"
        if self._done_at_start:
            line = f"{self._label}: done in {clock(self._elapsed_s)}, {self._done} {self._unit} in all"
        if self._measured_rate is None:
            return line
        return f"{line} ({format_rate(self._measured_rate)} {self._unit}/s without the start)"

    def _counts(self) -> str:
        if self._total is None:
            return f"{self._done} {self._unit} so far"
        return f"{self._done}/{self._total} {self._unit} ({self._share:.0%})"

    def _left(self) -> str:
        if self._total is None or self._done >= self._total or not self._is_stable:
            return ""
        rate = self._measured_rate or per_second(self._done - self._done_at_start, self._elapsed_s)
        if not rate:
            return ""
        return f", {clock((self._total - self._done) / rate)} left"

    @property
    def _share(self) -> float:
        return self._done / self._total if self._total else 1.0

    @property
    def _elapsed_s(self) -> float:
        return self._clock() - self._started

    @property
    def _is_stable(self) -> bool:
        counted_s = self._clock() - self._first_counted if self._first_counted is not None else 0.0
        return self._num_counts >= STABLE_COUNTS and counted_s >= STABLE_S


def clock(seconds: float) -> str:
    """Format seconds as minutes and seconds, such as 2:05, or as hours, minutes and seconds, such as 12:02:05."""
    whole = int(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"


def say(line: str) -> None:
    """Print a line to standard output immediately, above the updating line if there is one, with secrets hidden.

    If the reader of standard output has ended, as `head` does, this ends the command: it raises BrokenPipeError if it
    is called in the main thread, and interrupts the main thread if it is called in another one.
    """
    try:
        _say(line, to_stderr=False)
    except BrokenPipeError:
        main = threading.main_thread().ident
        if main is None or threading.get_ident() == main:
            raise
        # Threads still print until the process ends, and must not interrupt the main thread again.
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115
        # `_thread.interrupt_main` would not wake the main thread while it waits.
        signal.pthread_kill(main, signal.SIGINT)


def say_error(line: str) -> None:
    """Print a line like `say`, but to standard error. It is shown even if the output of libraries goes to a file."""
    _say(line, to_stderr=True)


def end_updating_line() -> None:
    """Erase the updating line. Called when the command is about to end."""
    _status_line.end()


def _say(line: str, to_stderr: bool) -> None:
    # The line and its line break are written in one call, since several threads and processes print.
    _status_line.write(f"{readable(without_secrets(line))}\n", _stream(to_stderr))


def _stream(to_stderr: bool) -> TextIO:
    return LIBRARY_OUTPUT.stderr if to_stderr else sys.stdout
