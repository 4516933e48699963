"""The result of sizing a run: what each phase takes, and whether its models fit."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from mpa_ray.run.phase_record import PhaseKey
from mpa_ray.sizing.memory import MemoryCheck
from mpa_ray.sizing.rates import Rate
from mpa_ray.textual import Json


@dataclass(frozen=True)
class PhaseSizing:
    """The estimate for one phase: a pass of a model, a training run, or the indexing."""

    key: PhaseKey
    count: float | None
    """Images, questions or samples; None if the number is not known."""
    unit: str
    rate: Rate
    """Units per second of one replica or worker."""
    replicas: int
    """Engines or workers that work side by side."""
    start_s: float
    """Seconds of start-up and shutdown, which `rate` does not include."""
    num_gpus: float
    """GPUs that the phase holds from its start to its end."""
    num_starts: int = 0
    """How many engines start."""
    tokens: float | None = None
    """Tokens of prompts, images and replies together."""

    @property
    def wall_s(self) -> float | None:
        """Seconds from start to end; None if the rate or the count is not known."""
        if self.count is None or self.rate.value is None:
            return None
        return self.start_s + self.count / (self.rate.value * self.replicas)

    @property
    def gpu_hours(self) -> float | None:
        """GPU-hours; None if the time is not known."""
        return None if self.wall_s is None else self.wall_s * self.num_gpus / 3600

    def to_json(self) -> dict[str, Json]:
        """The JSON form."""
        fields = {name: value for name, value in asdict(self).items() if name != "key"}
        return {"name": self.key.label, **fields, "wall_s": self.wall_s, "gpu_hours": self.gpu_hours}


@dataclass(frozen=True)
class Sizing:
    """What a run takes. The phases are counted as if they ran one after the other."""

    phases: list[PhaseSizing]
    checks: list[MemoryCheck]
    notes: list[str]
    gpu_hour_price: float | None = None
    from_run: str | None = None
    """The run whose rates are used; None if there is none."""

    @property
    def is_complete(self) -> bool:
        """Whether the time of every phase is known."""
        return all(phase.wall_s is not None for phase in self.phases)

    @property
    def wall_s(self) -> float:
        """Seconds of all phases whose time is known."""
        return sum(phase.wall_s or 0.0 for phase in self.phases)

    @property
    def gpu_hours(self) -> float:
        """GPU-hours of all phases whose time is known."""
        return sum(phase.gpu_hours or 0.0 for phase in self.phases)

    @property
    def fits(self) -> bool:
        """False if a memory check shows that a model does not fit."""
        return all(check.result != "does not fit" for check in self.checks)

    def to_json(self) -> dict[str, Json]:
        """The JSON form."""
        cost = None if self.gpu_hour_price is None else self.gpu_hours * self.gpu_hour_price
        return {
            "is_complete": self.is_complete,
            "wall_s": self.wall_s,
            "gpu_hours": self.gpu_hours,
            "cost": cost,
            "fits": self.fits,
            "phases": [phase.to_json() for phase in self.phases],
            "memory": [asdict(check) for check in self.checks],
            "notes": self.notes,
        }
