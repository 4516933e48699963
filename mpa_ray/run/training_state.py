"""The state of a student's training, as its workers store it in `training.json`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from mpa_ray.run.run import Run
from mpa_ray.run.sealed_json import sealed
from mpa_ray.run.training_log import LogEntry, LogFiles, TrainingLog, move_to_files, read_files
from mpa_ray.textual import Json

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
        """A warning if the student answers fewer than 95 % of the number of pairs that it answered before training.

        The warning is a clause without a subject; the caller puts the student's name before it.
        """
        if self.before is None or self.after is None or self.after >= _LEAST_RETAINED * self.before:
            return None
        return (
            f"answers {self.after} of the retained pairs, down from {self.before} before the training "
            "(forgetting): raise the student's level.replay_share, or lower its level.learning_rate"
        )

    def to_json(self) -> dict[str, int]:
        """Counts that are not known yet are left out."""
        return _without_none(asdict(self))

    @classmethod
    def from_json(cls, content: dict[str, int]) -> Retained:
        return cls(**content)


@dataclass(frozen=True)
class Resumption:
    """A restart of the training."""

    from_step: int
    """The step of the checkpoint; 0 if there was none."""
    had_reached: int
    """The last step that was logged before the restart."""
    workers: int
    """The number of workers after the restart."""

    @property
    def num_repeated_steps(self) -> int:
        """The number of logged steps that were trained again."""
        return max(0, self.had_reached - self.from_step)


@dataclass(frozen=True)
class TrainingState:
    """The progress of a training run, and the latest entries of its log."""

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
    attempt: int = 0
    """The number of the current attempt, from 0; each restart is another attempt."""
    log_files: tuple[LogFiles, ...] = ()
    """The files with the entries before those in `log`, in the order of the attempts."""
    log: TrainingLog = field(default_factory=TrainingLog)
    """The latest entries. `whole_log` also reads the earlier ones."""

    @property
    def is_trained(self) -> bool:
        """Whether the last step is done and the retained pairs are counted, so that only the export is left."""
        return self.retained.after is not None

    @property
    def is_exported(self) -> bool:
        return self.num_unreadable is not None

    def whole_log(self, run: Run, folder: str) -> TrainingLog:
        """All entries of the log of the training in this folder."""
        return TrainingLog((*read_files(run, folder, self.log_files), *self.log.entries))

    def begin_attempt(self, from_step: int, num_workers: int) -> TrainingState:
        """The state at the start of another attempt.

        Args:
            from_step: The step of the checkpoint; 0 if there is none.
            num_workers: The number of workers of the attempt.
        """
        return replace(
            self,
            step=from_step,
            resumed=(*self.resumed, Resumption(from_step, self.step, num_workers)),
            attempt=self.attempt + 1,
            log_files=tuple(files.resumed_from(from_step) for files in self.log_files),
            log=self.log.until(from_step),
        )

    def logged(self, entry: LogEntry, run: Run, folder: str) -> TrainingState:
        """The state with another entry. Older entries may move to a file of the log in this folder."""
        *earlier, latest = self.log_files or (LogFiles(self.attempt),)
        if latest.attempt != self.attempt:
            earlier, latest = [*earlier, latest], LogFiles(self.attempt)
        latest, log = move_to_files(run, folder, latest, TrainingLog((*self.log.entries, entry)))
        return replace(self, log_files=(*earlier, latest), log=log)

    @classmethod
    def read(cls, run: Run, folder: str) -> TrainingState | None:
        """The state of the training in this folder of a run; None before its first log entry."""
        try:
            return cls.from_json(run.read_json(f"{folder}/{FILE_NAME}"))
        except FileNotFoundError:
            return None

    def write(self, run: Run, folder: str) -> None:
        """Replace the stored state."""
        run.storage.write(f"{folder}/{FILE_NAME}", json.dumps(sealed(self.to_json())).encode())

    def to_json(self) -> dict[str, Json]:
        return {
            **{name: value for name, value in vars(self).items() if name not in _NESTED},
            "retained": self.retained.to_json(),
            "resumed": [asdict(entry) for entry in self.resumed],
            "log_files": [asdict(files) for files in self.log_files],
            "log": [entry.to_json() for entry in self.log.entries],
        }

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> TrainingState:
        """The inverse of `to_json`."""
        nested = {
            "retained": Retained.from_json(content.get("retained", {})),
            "resumed": tuple(Resumption(**entry) for entry in content.get("resumed", [])),
            "log_files": tuple(LogFiles(**files) for files in content.get("log_files", [])),
            "log": TrainingLog(tuple(LogEntry.from_json(entry) for entry in content.get("log", []))),
        }
        return cls(**{**content, **nested})


_NESTED = ("retained", "resumed", "log_files", "log")


def _without_none(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
