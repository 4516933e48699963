"""A command and every process below it: what CPU time they take, and which of them outlive it."""

from __future__ import annotations

import time
from contextlib import suppress

import psutil


class ProcessTree:
    """Processes that were ever seen below a process, looked up again and again.

    What began and ended between two looks is not seen. A process stays known once its parents are gone.
    """

    def __init__(self, root: int) -> None:
        self._root = psutil.Process(root)
        self._cpu_s: dict[psutil.Process, float] = {}

    def look(self) -> None:
        """Take the CPU times of all processes there are now."""
        found = {self._root, *self._cpu_s}
        with suppress(psutil.NoSuchProcess):
            found.update(self._root.children(recursive=True))
        for process in found:
            with suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                self._cpu_s[process] = times.user + times.system

    @property
    def cpu_s(self) -> float:
        """Of all processes, up to when each was last looked at."""
        return sum(self._cpu_s.values())

    def alive(self) -> list[psutil.Process]:
        """Those that have not ended; a process of another that was given the id of one of them does not count."""
        return [process for process in self._cpu_s if _is_alive(process)]

    def wait_until_gone(self, timeout_s: float) -> tuple[list[tuple[str, float]], list[str]]:
        """When each that is alive now ended, in seconds from now, and what is left after so long; by their names."""
        started = time.monotonic()
        left = {process: _name(process) for process in self.alive()}
        gone: list[tuple[str, float]] = []
        while left and (waited := time.monotonic() - started) < timeout_s:
            gone += [(left.pop(process), round(waited, 1)) for process in list(left) if not _is_alive(process)]
            time.sleep(0.1)
        return gone, list(left.values())


def _is_alive(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


def _name(process: psutil.Process) -> str:
    with suppress(psutil.NoSuchProcess):
        return str(process.name())
    return "?"
