"""A command and all processes below it: the CPU time that they use, and which of them outlive the command."""

from __future__ import annotations

import time
from contextlib import suppress

import psutil


class ProcessTree:
    """A process and the processes below it, as far as `update` has seen them.

    A process that starts and ends between two updates is missed. A known process stays known when its parents end.
    """

    def __init__(self, root: int) -> None:
        self._root = psutil.Process(root)
        self._cpu_s: dict[psutil.Process, float] = {}

    def update(self) -> None:
        """Find new processes, and read the CPU times of all."""
        processes = {self._root, *self._cpu_s}
        with suppress(psutil.NoSuchProcess):
            processes.update(self._root.children(recursive=True))
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                self._cpu_s[process] = times.user + times.system

    @property
    def cpu_s(self) -> float:
        """The CPU time of all processes, up to the last update."""
        return sum(self._cpu_s.values())

    def alive(self) -> list[psutil.Process]:
        """The processes that have not ended; another process that was given the id of one of them does not count."""
        return [process for process in self._cpu_s if _is_alive(process)]

    def wait_until_gone(self, timeout_s: float) -> tuple[list[tuple[str, float]], list[str]]:
        """Wait for the processes that are alive now.

        Returns:
            The name of each process that ended and after how many seconds, and the names of those that did not end.
        """
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
