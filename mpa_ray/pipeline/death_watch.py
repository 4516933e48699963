"""Prints the deaths of a pass's processes while the pass runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mpa_ray.observability.progress import say
from mpa_ray.pipeline.repeated_call import RepeatedCall

_INTERVAL_S = 5.0


@dataclass(frozen=True)
class Deaths:
    """The processes of a pass that have died."""

    number: int = 0
    latest: str = ""
    """The role of the process that died last, and the cause of its death."""


class DeathWatch(RepeatedCall):
    """Prints a line, in a thread of the driver, when processes of a pass have died.

    Without these lines, a pass whose engines die while they visit its first shard would show no progress for as long as
    it takes to find the images that kill engines.
    """

    def __init__(self, label: str, deaths: Callable[[], Deaths | None], interval_s: float = _INTERVAL_S) -> None:
        """Begin to watch.

        Args:
            label: The name of the pass.
            deaths: Returns the deaths so far; None if they are not known now.
            interval_s: Seconds between two calls of `deaths`. At most one line is printed after each call.
        """
        self._label, self._deaths, self._num_printed = label, deaths, 0
        super().__init__(self._print_new, interval_s)

    def _print_new(self) -> bool:
        deaths = self._deaths()
        if deaths is not None and deaths.number > self._num_printed:
            self._num_printed = deaths.number
            number = "1 process died" if deaths.number == 1 else f"{deaths.number} processes died"
            say(f"{self._label}: {number} so far; the latest: {deaths.latest}")
        return False
