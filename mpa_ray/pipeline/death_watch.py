"""Prints the deaths of a pass's processes while the pass runs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from mpa_ray.observability.progress import say

_INTERVAL_S = 5.0


@dataclass(frozen=True)
class Deaths:
    """The processes of a pass that have died."""

    number: int = 0
    latest: str = ""
    """The role of the process that died last, and the cause of its death."""


class DeathWatch:
    """Prints a line, in a thread of the driver, when processes of a pass have died.

    Without these lines, a pass whose engines die while they visit its first shard would show no progress for as long as
    it takes to find the images that kill engines.
    """

    def __init__(self, label: str, deaths: Callable[[], Deaths | None], interval_s: float = _INTERVAL_S) -> None:
        """Begin to watch.

        Args:
            label: The name of the pass.
            deaths: Returns the deaths so far; None if they are not known now.
            interval_s: Seconds between two calls of `deaths`, and so between two lines.
        """
        self._label, self._deaths, self._interval_s = label, deaths, interval_s
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        # A call after the end of Ray would start it again. A call that hangs is not waited for.
        self._thread.join(timeout=1.0)

    def _watch(self) -> None:
        num_printed = 0
        while not self._is_over.wait(self._interval_s):
            deaths = self._deaths()
            if deaths is None or deaths.number <= num_printed:
                continue
            num_printed = deaths.number
            number = "1 process died" if num_printed == 1 else f"{num_printed} processes died"
            say(f"{self._label}: {number} so far; the latest: {deaths.latest}")
