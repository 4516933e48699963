"""Summarise a student's training for the report: losses, speed, and restarts."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from mpa_ray.run.run import Run
from mpa_ray.run.training_log import LogEntry
from mpa_ray.run.training_state import Resumption, Retained, TrainingState
from mpa_ray.textual import Json

SPEEDS = (
    "samples_per_s",
    "supervised_tokens_per_s",
    "padding_share",
    "data_wait_share",
    "memory_gib",
    "tflops_per_s",
    "mfu",
)
"""The fields of `LogEntry` that a report shows."""


@dataclass(frozen=True)
class LossAtStep:
    """A loss and the optimiser step at which it was measured."""

    step: int
    loss: float


@dataclass(frozen=True)
class TrainingSummary:
    """What a report shows about a training run."""

    losses: list[LossAtStep]
    held_out_losses: list[LossAtStep]
    best_step: int | None
    """The step with the lowest held-out loss, whose weights are exported; None if no samples are held out."""
    resumed: list[Resumption]
    retained: Retained
    num_mixed_in: int
    """Samples added for replay and balance."""
    speed: dict[str, float]
    """The median of the logged values, without the warm-up, for each name in `SPEEDS` that was logged."""

    @property
    def is_falling(self) -> bool:
        """Whether the mean of the last quarter of the losses is below that of the first quarter.

        True if there are fewer than four losses.
        """
        losses = [point.loss for point in self.losses]
        quarter = len(losses) // 4
        return not quarter or statistics.fmean(losses[-quarter:]) < statistics.fmean(losses[:quarter])

    def to_json(self) -> dict[str, Json]:
        return {**asdict(self), "retained": self.retained.to_json()}


def training_summary(run: Run, folder: str) -> TrainingSummary | None:
    """Summarise the training in a folder of the run; None before the first log entry of the training."""
    state = TrainingState.read(run, folder)
    if state is None:
        return None
    log = state.whole_log(run, folder)
    return TrainingSummary(
        losses=[LossAtStep(entry.step, entry.loss) for entry in log.entries if entry.loss is not None],
        held_out_losses=[
            LossAtStep(entry.step, entry.eval_loss) for entry in log.entries if entry.eval_loss is not None
        ],
        best_step=state.best_step,
        resumed=list(state.resumed),
        retained=state.retained,
        num_mixed_in=run.epoch_counts(folder).num_mixed_in,
        speed=_median_speeds(log.speed_entries),
    )


def _median_speeds(entries: Sequence[LogEntry]) -> dict[str, float]:
    logged = {name: [getattr(entry, name) for entry in entries] for name in SPEEDS}
    known = {name: [value for value in values if value is not None] for name, values in logged.items()}
    return {name: statistics.median(values) for name, values in known.items() if values}
