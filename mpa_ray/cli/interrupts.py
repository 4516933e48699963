"""Handle SIGTERM and Ctrl-C: at any moment, they end a command cleanly, with exit code 130."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_GRACE_S = 15.0
"""Seconds in which the main thread must end the command cleanly."""

Handler = Callable[[int, FrameType | None], object] | int | None


class Interrupts:
    """Turns the first SIGTERM or SIGINT of a process into a KeyboardInterrupt of the main thread.

    Later signals have no effect, since Ray and schedulers may send SIGTERM more than once. If the process has not ended
    after a grace period, another thread ends it: native code may block the main thread, or a library may drop the
    KeyboardInterrupt.
    """

    def __init__(self, exit_code: int, end_output: Callable[[], None], grace_s: float = _GRACE_S) -> None:
        """Prepare to handle signals. Only `handled` changes what signals do.

        Args:
            exit_code: The exit code of an interrupted process.
            end_output: Prints the last message. It may be called in any thread.
            grace_s: Seconds from the first signal until another thread ends the process.
        """
        self._exit_code, self._end_output, self._grace_s = exit_code, end_output, grace_s
        self._is_raised, self._is_said = False, threading.Lock()

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Handle the signals in the block; afterwards, a SIGTERM ends the process immediately.

        Does nothing outside of the main thread, where Python cannot handle signals.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        signal.signal(signal.SIGTERM, self._handle)
        before: Handler = signal.getsignal(signal.SIGINT)
        # A shell starts background commands with SIGINT ignored. For these, it must stay ignored.
        if before is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, self._handle)
        # When Python ends, it restores the default effect of signals that have a handler, so ignore them before that.
        # This exit handler runs after the ones that are registered later.
        atexit.register(_ignore_signals)
        with _reported_to(self._watch):
            try:
                yield
            finally:
                if not self._is_raised:
                    signal.signal(signal.SIGTERM, lambda *_: self._end_process())
                    signal.signal(signal.SIGINT, before)

    @property
    def is_raised(self) -> bool:
        """Whether the process has been interrupted, even if the KeyboardInterrupt was lost."""
        return self._is_raised

    def end(self) -> int:
        """Print the last message, and return the exit code.

        When the process then exits, Ray's shutdown is skipped. An interrupt in Ray's native code corrupts objects (Ray
        2.60), and deleting these objects would abort the process. Ray's other processes notice when this process ends.
        """
        self._is_raised = True
        _ignore_signals()
        self._say_once()
        if "ray" in sys.modules:
            atexit.register(self._end_process)
        return self._exit_code

    def _handle(self, *_: object) -> None:
        if not self._is_raised:
            self._is_raised = True
            raise KeyboardInterrupt

    def _watch(self) -> None:
        """End the process after the grace period. Runs in a thread that no signal interrupts."""
        threading.Event().wait(self._grace_s)
        self._say_once()
        self._end_process()

    def _say_once(self) -> None:
        if self._is_said.acquire(blocking=False):
            self._end_output()

    def _end_process(self) -> None:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(self._exit_code)


def _ignore_signals() -> None:
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)


@contextmanager
def _reported_to(watch: Callable[[], None]) -> Iterator[None]:
    """Call `watch` in a thread when the first SIGTERM or SIGINT arrives, even if native code blocks the main thread."""
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)

    def wait() -> None:
        # An empty read means that the block has ended.
        while numbers := os.read(read_end, 16):
            if {signal.SIGTERM, signal.SIGINT} & set(numbers):
                watch()
        os.close(read_end)

    threading.Thread(target=wait, name="interrupts", daemon=True).start()
    before = signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(write_end)
