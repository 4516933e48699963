"""The processes of a pass: which of them died, and why."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable

from mpa_ray.observability.worker_process import WorkerProcess

RecordDeath = Callable[[WorkerProcess, str | None], Awaitable[str]]
"""Records the death of a process in the run, with the error that it reported, if any. Returns the cause in words."""

WasTakenAway = Callable[[WorkerProcess], Awaitable[bool]]
"""Whether a dead process was ended from outside: its node has ended, or the process was asked to end."""


async def never_taken_away(_: WorkerProcess) -> bool:
    """Return False. For processes that are never ended from outside."""
    return False


class DeathRegister:
    """Records each death once, no matter how many shards notice it."""

    def __init__(self, record: RecordDeath, was_taken_away: WasTakenAway = never_taken_away) -> None:
        """Begin without deaths. `record` records each death."""
        self._record, self._was_taken_away = record, was_taken_away
        self._causes: dict[WorkerProcess, asyncio.Task[str]] = {}

    def begin(self, process: WorkerProcess, error: str | None = None) -> asyncio.Task[str]:
        """Begin to record a death if no earlier call has. The result of the returned task is the cause of the death."""
        if process not in self._causes:
            self._causes[process] = asyncio.ensure_future(self._record(process, error))
        return self._causes[process]

    async def cause_of(self, process: WorkerProcess) -> str:
        """Why a process died."""
        return await asyncio.shield(self.begin(process))

    async def was_taken_away(self, process: WorkerProcess) -> bool:
        """Whether a dead process was ended from outside."""
        return await self._was_taken_away(process)

    @property
    def latest(self) -> tuple[int, str]:
        """The number of deaths whose cause is known, and the role and the cause of the latest."""
        known = [
            (process, cause)
            for process, cause in self._causes.items()
            if cause.done() and not cause.cancelled() and cause.exception() is None
        ]
        return len(known), "".join(f"{process.role}: {cause.result()}" for process, cause in known[-1:])

    async def settle(self) -> None:
        """Wait until all records are written."""
        await asyncio.gather(*self._causes.values())


class Begun:
    """Tasks that a process begins and must end, such as the start of an engine.

    If another process begins the same task, then the process that began it before must have died.
    """

    def __init__(self, deaths: DeathRegister, max_deaths: int) -> None:
        self._deaths, self._max_deaths = deaths, max_deaths
        self._processes: dict[str, WorkerProcess] = {}
        self._num_deaths: Counter[str] = Counter()

    async def begin(self, task: str, process: WorkerProcess) -> str:
        """Begin a task. Returns why the task must not be tried again, or "" if the process may try it."""
        previous, self._processes[task] = self._processes.get(task), process
        if previous is None or previous == process:
            return ""
        cause = await self._deaths.cause_of(previous)
        if await self._deaths.was_taken_away(previous):
            return ""
        self._num_deaths[task] += 1
        if self._num_deaths[task] < self._max_deaths:
            return ""
        return f"the {previous.role} died {self._num_deaths[task]} times, the last time with: {cause}"

    def end(self, task: str) -> None:
        """Record that a task is done."""
        self._processes.pop(task, None)
        self._num_deaths.pop(task, None)
