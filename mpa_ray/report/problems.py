"""The problems that a report shows at its top: what is missing from the run, and what went wrong in it."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from mpa_ray.config import MeasuredModel
from mpa_ray.evaluation.scores import Scores
from mpa_ray.records import Outcome, State
from mpa_ray.report.phase_status import PhaseStatus
from mpa_ray.report.status import status
from mpa_ray.run.dataset import ShardedDataset
from mpa_ray.run.logs import DeathSummary
from mpa_ray.run.phase_record import PhaseKey
from mpa_ray.run.recorded_config import models_by_benchmark, student_names
from mpa_ray.run.run import Run
from mpa_ray.run.versions import mixed_versions, model_datasets
from mpa_ray.textual import Json


@dataclass(frozen=True)
class Unmeasured:
    """A model that has no score on a benchmark."""

    model: str
    benchmark: str
    reason: str


@dataclass(frozen=True)
class Problems:
    """What is missing from a run, and what went wrong in it."""

    remaining: list[str]
    """The labels of the phases that are not done, except the report."""
    command: str | None
    """The command that continues the run; None if nothing remains."""
    errors: dict[str, str]
    """Why the last attempts of unfinished phases failed, by the label of the phase."""
    unmeasured: list[Unmeasured]
    deaths: DeathSummary
    """The processes that died, including those whose death did not end the command."""
    mixed: list[str] = field(default_factory=list)
    """One sentence for each dataset whose rows were made with several versions of a library."""

    def to_json(self) -> dict[str, Json]:
        return {"is_done": not self.remaining, "continue_with": self.command, **asdict(self)} | {
            "deaths": self.deaths.to_json()
        }


def collect_problems(run: Run, scores: Scores) -> Problems:
    """Collect the problems of a run from its files."""
    current = status(run)
    remaining = [phase for phase in current.remaining if phase.key.kind != "report"]
    return Problems(
        remaining=[phase.name for phase in remaining],
        command=remaining[0].command if remaining else None,
        errors={phase.name: phase.error for phase in remaining if phase.error},
        unmeasured=_unmeasured(run, scores, current.phases),
        deaths=current.deaths,
        mixed=mixed_versions(model_datasets(run, student_names(run), models_by_benchmark(run))),
    )


def _unmeasured(run: Run, scores: Scores, phases: list[PhaseStatus]) -> list[Unmeasured]:
    by_key = {phase.key: phase for phase in phases}
    unmeasured = []
    for key, phase in by_key.items():
        if key.kind != "evaluate" or key.model is None or key.benchmark is None:
            continue
        if key.benchmark in scores and key.model in scores[key.benchmark].models:
            continue
        reason = _why_unanswered(phase, by_key) if phase.state != "done" else _why_unscored(run, key)
        unmeasured.append(Unmeasured(key.model, key.benchmark, reason))
    return unmeasured


def _why_unanswered(phase: PhaseStatus, by_key: dict[PhaseKey, PhaseStatus]) -> str:
    """Why a model has not answered a benchmark.

    This is the error of its evaluation, or the state of an earlier phase that the evaluation needs.
    """
    if phase.error:
        return phase.error
    for earlier in by_key.values():
        is_earlier = earlier.key.kind in ("identify", "level") and _needs(phase.key, earlier.key)
        if is_earlier and earlier.state != "done":
            return earlier.error or f"{earlier.name} is not finished."
    return "the model has not answered it yet."


def _needs(evaluate: PhaseKey, earlier: PhaseKey) -> bool:
    """Whether an evaluation needs an earlier phase: the identification of the same student, or the model's training."""
    model = MeasuredModel.from_name(evaluate.model or "")
    if model is None or model.student != earlier.model:
        return False
    return earlier.kind == "identify" or model.arm == earlier.arm


def _why_unscored(run: Run, key: PhaseKey) -> str:
    """Why a model that has answered a benchmark has no score on it."""
    assert key.model is not None, "an evaluation has a model"
    assert key.benchmark is not None, "and a benchmark"
    predictions = run.predictions(key.benchmark, key.model)
    shards = run.manifest(run.benchmark_dir(key.benchmark)).shards
    num_answered, reasons = _answered(predictions, shards)
    if num_answered:
        return "the answers are not scored yet."
    most = ", ".join(f"{reason}: {number}" for reason, number in reasons.most_common(3))
    return f"none of its {reasons.total()} questions got a reply ({most})."


def _answered(predictions: ShardedDataset[Any], shards: list[str]) -> tuple[int, Counter[str]]:
    """The number of questions with a reply, and the number of questions without a reply by reason."""
    reasons: Counter[str] = Counter()
    num_answered = 0
    for shard in shards:
        for row in predictions.columns(shard, Outcome):
            if row.state == State.KEPT:
                num_answered += 1
            else:
                reasons[row.reason or row.state] += 1
    return num_answered, reasons
