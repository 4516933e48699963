"""Summarise a student for the report: its verdicts and a sample of them, its training, and its scores."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from mpa_ray.config import MeasuredModel, StudentConfig
from mpa_ray.evaluation.scores import Gain, MetricReference, Scores, Summary
from mpa_ray.records import State, Verdict
from mpa_ray.report.training import TrainingSummary
from mpa_ray.textual import Json

NUM_SAMPLES = 24
_FEW_PARITY_SAMPLES = 100
_FORGETTING_POINTS = 5
"""There is a warning if the score on a family of questions falls by more than this many percentage points."""


@dataclass(frozen=True)
class MeasuredGroup(Gain):
    """A student's gain on a group of questions, with the teacher's score."""

    teacher: Summary | None
    """None if the teacher is not measured."""


@dataclass(frozen=True)
class MeasuredBenchmark:
    """A student's scores on one benchmark."""

    metric: MetricReference
    groups: dict[str, MeasuredGroup]
    warnings: list[str]

    @property
    def has_teacher(self) -> bool:
        """Whether the teacher is measured on the benchmark."""
        return any(group.teacher is not None for group in self.groups.values())


@dataclass(frozen=True)
class StudentSummary:
    """What a report shows about a student."""

    model: str
    method: str
    num_annotations: int
    num_consistent: int
    """Annotations on which the teacher agrees with itself."""
    num_parity_samples: int
    cells: dict[str, int]
    """The number of verdicts with each value of `Verdict.cell`."""
    dropped: dict[str, int]
    """The number of verdicts that are not kept, by reason."""
    samples: list[Verdict]
    measured: dict[str, MeasuredBenchmark]
    replay_share: float
    training: TrainingSummary | None
    warnings: list[str]

    @property
    def replayed_share(self) -> float:
        """The number of pairs that were mixed in, as a share of D_PI. Before the training, this is `replay_share`; it
        can be smaller, because the student may have answered too few pairs correctly."""
        if self.training is None or not self.num_parity_samples:
            return self.replay_share
        return self.training.num_mixed_in / self.num_parity_samples

    @property
    def has_too_few_to_replay(self) -> bool:
        """Whether fewer pairs were mixed in than `replay_share` demands."""
        return self.replayed_share * self.num_parity_samples < self.replay_share * self.num_parity_samples - 1

    def to_json(self) -> dict[str, Json]:
        return {**asdict(self), "training": self.training.to_json() if self.training else None}


def student_summary(
    student: StudentConfig,
    verdicts: Iterable[Verdict],
    num_kept: int,
    scores: Scores,
    training: TrainingSummary | None,
) -> StudentSummary:
    """Summarise a student.

    Args:
        student: The student's settings.
        verdicts: The verdicts on the student's answers. They are iterated over once.
        num_kept: The number of these verdicts in state `kept`.
        scores: The run's scores. Those of the student may be missing.
        training: The student's training on D_PI; None if nothing is logged yet.
    """
    cells: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    sample = OutcomeSample()
    for verdict in verdicts:
        cells[verdict.cell] += 1
        if verdict.state != State.KEPT:
            dropped[verdict.reason or verdict.state] += 1
        sample.add(verdict)
    measured = measured_benchmarks(scores, student.name)
    return StudentSummary(
        model=student.model,
        method=student.level.method.kind,
        num_annotations=cells.total(),
        num_consistent=cells["teacher_yes_student_no"] + cells["teacher_yes_student_yes"],
        num_parity_samples=cells["teacher_yes_student_no"],
        cells=dict(cells),
        dropped=dict(dropped.most_common()),
        samples=sample.mixed(),
        measured=measured,
        replay_share=student.level.replay_share,
        training=training,
        warnings=student_warnings(num_kept, measured, training),
    )


class OutcomeSample:
    """A uniform random sample of the verdicts with each outcome.

    The verdicts are seen only once, one after another (reservoir sampling; Vitter 1985).
    """

    def __init__(self) -> None:
        self._rng = random.Random(0)
        self._num_seen: Counter[str] = Counter()
        self._by_outcome: dict[str, list[Verdict]] = {}

    def add(self, verdict: Verdict) -> None:
        outcome = verdict.reason or verdict.state
        self._num_seen[outcome] += 1
        sample = self._by_outcome.setdefault(outcome, [])
        if len(sample) < NUM_SAMPLES:
            sample.append(verdict)
        elif (slot := self._rng.randrange(self._num_seen[outcome])) < NUM_SAMPLES:
            sample[slot] = verdict

    def mixed(self) -> list[Verdict]:
        """Return up to `NUM_SAMPLES` verdicts: half of them kept, and half from the other outcomes in turn.

        If there are too few of one half, more of the other half are returned.
        """
        queues = {outcome: list(sample) for outcome, sample in self._by_outcome.items()}
        kept = queues.pop(State.KEPT.value, [])
        others: list[Verdict] = []
        while any(queues.values()) and len(others) < NUM_SAMPLES:
            others += [queue.pop(0) for _, queue in sorted(queues.items()) if queue]
        chosen = kept[: max(NUM_SAMPLES // 2, NUM_SAMPLES - len(others))]
        return chosen + others[: NUM_SAMPLES - len(chosen)]


def measured_benchmarks(scores: Scores, student: str) -> dict[str, MeasuredBenchmark]:
    """Return the student's scores on each benchmark that it has answered both before and after training."""
    models = MeasuredModel.all_of(student, ["parity"])
    before, after = (model.name for model in models)
    measured = {}
    for benchmark, scored in scores.items():
        gains = scored.gains(before, after)
        if gains is None:
            continue
        teacher = scored.models["teacher"].groups if "teacher" in scored.models else {}
        measured[benchmark] = MeasuredBenchmark(
            scored.metric,
            {group: MeasuredGroup(g.before, g.after, g.gain, teacher.get(group)) for group, g in gains.items()},
            [f"{model.when}: {warning}" for model in models for warning in scored.models[model.name].warnings],
        )
    return measured


def student_warnings(
    num_parity_samples: int, measured: dict[str, MeasuredBenchmark], training: TrainingSummary | None
) -> list[str]:
    """Warn about the signs of a failed alignment that the authors of the method describe (arXiv 2509.16633)."""
    warnings = []
    if num_parity_samples < _FEW_PARITY_SAMPLES:
        warnings.append(
            f"only {num_parity_samples} parity samples: under {_FEW_PARITY_SAMPLES} are too few to learn from"
        )
    if training is not None:
        if not training.is_falling:
            warnings.append("the loss did not fall: lower the student's level.learning_rate, or check the samples")
        if (forgetting := training.retained.forgetting_warning()) is not None:
            warnings.append(forgetting)
    for benchmark, result in measured.items():
        for group, row in result.groups.items():
            points = 100 * row.gain.mean
            if group == "all" and points <= 0:
                warnings.append(f"{benchmark}: no gain after leveling")
            elif group.startswith("family: ") and points < -_FORGETTING_POINTS:
                lost = f"{benchmark}: {group} lost {-points:.1f} points"
                warnings.append(f"{lost} (forgetting): lower the student's level.learning_rate")
        warnings += [f"{benchmark}, {warning}" for warning in result.warnings]
    return warnings
