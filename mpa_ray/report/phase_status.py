"""The status of a run and of each of its phases, as data classes."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Literal

from mpa_ray.run.logs import DeathSummary
from mpa_ray.run.phase_record import PhaseKey
from mpa_ray.textual import Json

PhaseState = Literal["done", "begun", "not begun"]
"""`begun` covers both running and stopped phases. The files of a run do not show which of the two a phase is, but
`PhaseStatus.last_sign` is a hint."""


@dataclass(frozen=True)
class PhaseStatus:
    """The status of one phase of a run."""

    key: PhaseKey
    state: PhaseState
    command: str
    """The command that starts or continues the phase."""
    num_shards_done: int | None = None
    num_shards: int | None = None
    num_done: int | None = None
    """The number of images that are done, or of optimiser steps in training; None if the phase counts neither."""
    num_total: int | None = None
    unit: str = "images"
    """What `num_done` and `num_total` count."""
    per_s: float | None = None
    """The images/s of all attempts together (see `mpa_ray.observability.rate`); for training, samples per second."""
    num_attempts: int | None = None
    """The number of attempts that have ended, including those that did not finish the phase."""
    last_sign: datetime | None = None
    """When the phase's newest file was written."""
    attempt_ended: datetime | None = None
    """When the last attempt ended; None if the phase is done, or if a later attempt seems to be running.

    A later attempt seems to be running if it has recorded its start, or if a file was written after an attempt that
    ended without an error.
    """
    counts: dict[str, int] | None = None
    """The number of rows with each outcome (`kept` or a reason) in all committed shards; None if rows were not read."""
    note: str = ""
    error: str = ""
    """Why the last attempt failed; empty if it did not fail, if another attempt has begun since, or if the phase is
    done."""

    @property
    def name(self) -> str:
        return self.key.label

    def to_json(self) -> dict[str, Json]:
        """Return the fields as JSON values, with times in ISO 8601."""
        values = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "key"}
        plain = {name: value.isoformat() if isinstance(value, datetime) else value for name, value in values.items()}
        return {"name": self.name, **plain}


@dataclass(frozen=True)
class Status:
    """The status of a run: that of each phase, in the order of the phases."""

    run_dir: str
    phases: list[PhaseStatus]
    now: datetime
    deaths: DeathSummary = field(default_factory=lambda: DeathSummary({}, []))
    """The processes that died, including those whose death did not end the command."""

    @property
    def finished(self) -> list[str]:
        """The trained students: `STUDENT` for the arm `parity`, and `STUDENT ARM` for other arms."""
        return self._students("done")

    @property
    def unfinished(self) -> list[str]:
        """The students whose training has begun but is not done, written as in `finished`."""
        return self._students("begun")

    @property
    def remaining(self) -> list[PhaseStatus]:
        """Phases that are not done."""
        return [phase for phase in self.phases if phase.state != "done"]

    @property
    def command(self) -> str | None:
        """The command that continues the run; None once all phases are done."""
        return next((phase.command for phase in self.remaining), None)

    def to_json(self) -> dict[str, Json]:
        return {
            "run_dir": self.run_dir,
            "at": self.now.isoformat(),
            "is_done": not self.remaining,
            "left": [phase.name for phase in self.remaining],
            "students": {"leveled": self.finished, "begun": self.unfinished},
            "continue_with": self.command,
            "phases": [phase.to_json() for phase in self.phases],
            "deaths": self.deaths.to_json(),
        }

    def _students(self, state: PhaseState) -> list[str]:
        keys = [phase.key for phase in self.phases if phase.key.kind == "level" and phase.state == state]
        return [f"{key.model} {key.arm}" if key.arm != "parity" else f"{key.model}" for key in keys]
