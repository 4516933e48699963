"""The state of a student's training, as its workers store it in `training.json`."""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from mpa_ray.run.run import Run

FILE_NAME = "training.json"

_LEAST_RETAINED = 0.95


@dataclass(frozen=True)
class Retained:
    """Counts of the retained pairs: known pairs that are kept out of training, to measure forgetting."""

    num: int = 0
    before: int | None = None
    """How many pairs the student answered word for word before training; None until they are counted."""
    after: int | None = None
    """How many pairs the student answered word for word after training; None until they are counted."""

    def forgetting_warning(self) -> str | None:
        """A warning with the student as its subject, if fewer than 95 % of the pairs are still answered."""
        if self.before is None or self.after is None or self.after >= _LEAST_RETAINED * self.before:
            return None
        return (
            f"answers {self.after} of the retained pairs, and answered {self.before} before "
            "(forgetting): raise level.replay_share, or lower the learning rate"
        )

    def to_json(self) -> dict[str, int]:
        """Counts that are not known yet are left out."""
        return _without_none(asdict(self))

    @classmethod
    def from_json(cls, content: dict[str, int]) -> Retained:
        return cls(**content)


@dataclass(frozen=True)
class Resumption:
    """A restart of the training from a checkpoint."""

    from_step: int
    """The step of the checkpoint."""
    had_reached: int
    """The last step that was logged before the restart."""
    workers: int
    """The number of workers after the restart."""

    @property
    def num_repeated_steps(self) -> int:
        """The number of logged steps that were trained again."""
        return max(0, self.had_reached - self.from_step)


@dataclass(frozen=True)
class LogEntry:
    """One entry of the training's log; a field is None if the entry has no such value."""

    step: int = 0
    loss: float | None = None
    """Mean loss since the previous entry."""
    eval_loss: float | None = None
    """Loss on the held-out samples."""
    learning_rate: float | None = None
    grad_norm: float | None = None
    samples_per_s: float | None = None
    supervised_tokens_per_s: float | None = None
    tokens_per_s: float | None = None
    padding_share: float | None = None
    """Padding tokens as a share of all tokens that the model computed."""
    data_wait_share: float | None = None
    """The share of time in which rank 0 waited for data."""
    memory_gib: float | None = None
    """Memory of rank 0: the peak of its GPU, or the resident memory of its process on a CPU."""
    tflops_per_s: float | None = None
    """Floating-point operations of each worker, in 10^12 per second."""
    mfu: float | None = None
    """Model FLOPs utilization: operations as a share of the GPU's peak; None if the peak is not known."""
    other: dict[str, Any] = field(default_factory=dict)
    """Further values that transformers logs, such as `epoch`."""

    def to_json(self) -> dict[str, Any]:
        named = {name: value for name, value in vars(self).items() if name != "other"}
        return {**_without_none(named), **self.other}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> LogEntry:
        named = {name: value for name, value in content.items() if name in _LOG_FIELDS}
        return cls(**named, other={name: value for name, value in content.items() if name not in _LOG_FIELDS})


_LOG_FIELDS = {entry.name for entry in fields(LogEntry)} - {"other"}


@dataclass(frozen=True)
class TrainingState:
    """The progress of a training, and its log."""

    step: int = 0
    """The last optimiser step that was logged."""
    num_steps: int = 0
    num_unreadable: int | None = None
    """Samples whose images could no longer be read, or had changed; None until the student is exported."""
    num_changed: int | None = None
    """How many of the unreadable samples had images that had changed since the teacher saw them."""
    best_step: int | None = None
    """The step whose weights had the lowest loss on the held-out samples; None if no samples are held out."""
    retained: Retained = field(default_factory=Retained)
    resumed: tuple[Resumption, ...] = ()
    log: tuple[LogEntry, ...] = ()

    @property
    def loss_entries(self) -> tuple[LogEntry, ...]:
        """The entries with a training loss, which also hold the speed."""
        return tuple(entry for entry in self.log if entry.loss is not None)

    @property
    def speed_entries(self) -> tuple[LogEntry, ...]:
        """The entries with a speed. If there are several, the first is left out, because it includes the warm-up."""
        measured = tuple(entry for entry in self.log if entry.samples_per_s is not None)
        return measured[1:] or measured

    @property
    def samples_per_s(self) -> float | None:
        """The median over `speed_entries` of the rate of all workers together; None if there is no such entry."""
        rates = [entry.samples_per_s for entry in self.speed_entries if entry.samples_per_s is not None]
        return statistics.median(rates) if rates else None

    @classmethod
    def read(cls, run: Run, folder: str) -> TrainingState | None:
        """The state of the training in this folder of a run; None before its first log entry."""
        try:
            return cls.from_json(run.read_json(f"{folder}/{FILE_NAME}"))
        except FileNotFoundError:
            return None

    def write(self, run: Run, folder: str) -> None:
        """Replace the stored state."""
        run.storage.write(f"{folder}/{FILE_NAME}", json.dumps(self.to_json()).encode())

    def to_json(self) -> dict[str, Any]:
        return {
            **{name: value for name, value in vars(self).items() if name not in ("retained", "resumed", "log")},
            "retained": self.retained.to_json(),
            "resumed": [asdict(entry) for entry in self.resumed],
            "log": [entry.to_json() for entry in self.log],
        }

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> TrainingState:
        """The inverse of `to_json`."""
        nested = {
            "retained": Retained.from_json(content.get("retained", {})),
            "resumed": tuple(Resumption(**entry) for entry in content.get("resumed", [])),
            "log": tuple(LogEntry.from_json(entry) for entry in content.get("log", [])),
        }
        return cls(**{**content, **nested})


def _without_none(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
