"""How far a run and each of its phases have come, as values."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Literal

from mpa_ray.run.logs import DeathSummary
from mpa_ray.run.phase_record import PhaseKey
from mpa_ray.textual import Json

PhaseState = Literal["done", "begun", "not begun"]
"""`begun` covers phases that are running and phases that have stopped. Files do not tell which, but
`PhaseStatus.last_sign` is a hint."""


@dataclass(frozen=True)
class PhaseStatus:
    """How far a phase of a run has come."""

    key: PhaseKey
    state: PhaseState
    command: str
    """The command that starts or continues the phase."""
    num_shards_done: int | None = None
    num_shards: int | None = None
    num_done: int | None = None
    """Images, or steps of a training, that are done; None if the phase counts neither."""
    num_total: int | None = None
    unit: str = "images"
    """What `num_done` and `num_total` count."""
    per_s: float | None = None
    """Images per second while engines were at work, over all attempts; for a training, samples per second."""
    num_attempts: int | None = None
    """Attempts that have ended, whether or not they finished the phase."""
    last_sign: datetime | None = None
    """When the phase's newest file was written."""
    attempt_ended: datetime | None = None
    """When the last attempt ended, if it did not finish the phase and nothing has been written since."""
    counts: dict[str, int] | None = None
    """Rows of all committed shards by outcome, which is `kept` or a reason; None if rows were not read."""
    note: str = ""
    error: str = ""
    """Why the last attempt ended, if it did not finish the phase and nothing has been written since."""

    @property
    def name(self) -> str:
        return self.key.label

    def to_json(self) -> dict[str, Json]:
        """Plain values, with times as ISO 8601."""
        values = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "key"}
        plain = {name: value.isoformat() if isinstance(value, datetime) else value for name, value in values.items()}
        return {"name": self.name, **plain}


@dataclass(frozen=True)
class Status:
    """All phases of a run, in their order."""

    run_dir: str
    phases: list[PhaseStatus]
    now: datetime
    deaths: DeathSummary = field(default_factory=lambda: DeathSummary({}, []))
    """Processes that died, including those that the run has survived."""

    @property
    def finished(self) -> list[str]:
        """The students that are leveled, each followed by its arm unless that is `parity`."""
        return self._students("done")

    @property
    def unfinished(self) -> list[str]:
        """Students whose training has begun and is not done."""
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
