"""Finds out why the processes of an engine died, from their exit codes and the errors that they wrote."""

from __future__ import annotations

import multiprocessing
import re
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess

from mpa_ray.observability.last_words import exit_in_words, in_words, last_error, names_no_cause
from mpa_ray.observability.worker_process import num_oom_kills, output_files, read_tail

_MAX_TAIL_BYTES = 2**17
_WAIT_S = 1.0
"""How long to wait for the exit code of a process that is ending."""
_POLL_S = 0.1
_EXIT_CODE = re.compile(r"'(\w+)': (-?\d+)")
"""Matches the name and the exit code of a process that could not start, in a message of vLLM."""
_OUT_OF_MEMORY = " by the kernel, because the machine ran out of memory"


class ChildProcesses:
    """The processes of an engine. They write their output to the same files as this process."""

    def __init__(self) -> None:
        """Begin with no process."""
        self._processes: list[BaseProcess] = []
        self._num_oom_kills = num_oom_kills()

    def add(self, processes: Iterable[BaseProcess]) -> None:
        """Add those processes that have not been added yet."""
        self._processes += [process for process in processes if process not in self._processes]

    def add_current(self) -> None:
        """Add all processes that `multiprocessing` has started in this process and that have not ended."""
        self.add(multiprocessing.active_children())

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Also add the processes that start in the block, even if they end before the block does."""
        is_over = threading.Event()
        thread = threading.Thread(target=self._watch, args=(is_over,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            is_over.set()
            thread.join()

    def _watch(self, is_over: threading.Event) -> None:
        while not is_over.wait(_POLL_S):
            self.add_current()

    def why_died(self, error: BaseException) -> str:
        """Say why the engine died: a signal that ended a process, an error that a process wrote, or else `error`.

        Args:
            error: The error that this process noticed. It may be only the consequence of another error.
        """
        if (killed := self._killed(str(error))) is not None:
            return killed
        if not names_no_cause(str(error)):
            return in_words(error)
        written = (last_error(read_tail(path, _MAX_TAIL_BYTES)) for path in reversed(output_files()))
        return next(filter(None, written), None) or self._ended() or in_words(error)

    def _killed(self, message: str) -> str | None:
        """Name the process that a signal ended. SIGTERM does not count: it ends the other processes after a death."""
        exit_codes = {name: int(code) for name, code in _EXIT_CODE.findall(message)}
        exit_codes |= {f"{process.name} (process {process.pid})": code for process, code in self._exit_codes()}
        for name, code in exit_codes.items():
            if code < 0 and code != -signal.SIGTERM:
                return f"{name} {exit_in_words(code)}{self._by_the_kernel(code)}"
        return None

    def _ended(self) -> str | None:
        for process, code in self._exit_codes():
            return f"{process.name} (process {process.pid}) {exit_in_words(code)}"
        return None

    def _exit_codes(self) -> list[tuple[BaseProcess, int]]:
        """The processes that have failed, with their exit codes, which are not 0."""
        if not any(_exit_code(process) for process in self._processes):
            alive = {process.sentinel: process for process in self._processes if _exit_code(process) is None}
            for sentinel in wait(list(alive), _WAIT_S):
                # The sentinel may be ready a moment before the exit code is.
                alive[sentinel].join(_WAIT_S)  # type: ignore[index]
        codes = ((process, _exit_code(process)) for process in self._processes)
        return [(process, code) for process, code in codes if code]

    def _by_the_kernel(self, exit_code: int) -> str:
        now = num_oom_kills()
        if exit_code != -signal.SIGKILL or now is None or self._num_oom_kills is None or now <= self._num_oom_kills:
            return ""
        return _OUT_OF_MEMORY


def _exit_code(process: BaseProcess) -> int | None:
    try:
        return process.exitcode
    except ValueError:
        # vLLM has closed the process object.
        return 0
