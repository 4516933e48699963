"""Calls a function every few seconds while a pass runs."""

from __future__ import annotations

import threading
from collections.abc import Callable


class RepeatedCall:
    """Calls a function in a thread of the driver until the function returns True or the `with` block ends."""

    def __init__(self, call: Callable[[], bool], interval_s: float) -> None:
        """Start the thread. It waits `interval_s` seconds before each call, including the first."""
        self._call, self._interval_s = call, interval_s
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._repeat, daemon=True)
        self._thread.start()

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        # A call after the end of Ray would start Ray again. The timeout is for a call that hangs.
        self._thread.join(timeout=1.0)

    def _repeat(self) -> None:
        while not self._is_over.wait(self._interval_s):
            if self._call():
                return
