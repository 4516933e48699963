"""The leaderboard: a table with a row for each student and each arm that the student was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mpa_ray.config import Arm, MeasuredModel, RunConfig, StudentConfig
from mpa_ray.evaluation.scores import Gain, Scores
from mpa_ray.run.phase_record import PhaseKey, phase_record
from mpa_ray.run.run import Run


@dataclass(frozen=True)
class LeaderboardRow:
    """The results of one student that was trained on one arm."""

    student: str
    arm: Arm
    model: str
    method: str
    num_chosen: int
    """The number of samples in the arm, including those that are held out."""
    num_samples: int
    """The number of samples that the student was trained on."""
    benchmarks: dict[str, Gain]
    """For each benchmark, the gain over all its questions."""
    seconds: float
    """Wall time of identification, training, check and evaluation.

    The student's identification counts in full for each of the student's arms.
    """
    gpu_seconds: float
    """The sum over the same phases of wall time multiplied by the number of GPUs that the phase reserves."""

    @property
    def label(self) -> str:
        return self.student if self.arm == "parity" else f"{self.student} ({self.arm})"

    @property
    def mean_gain(self) -> float:
        """The mean gain over all benchmarks; -1, the lowest possible gain, if there are no benchmarks."""
        gains = [gain.gain.mean for gain in self.benchmarks.values()]
        return sum(gains) / len(gains) if gains else -1.0


def leaderboard(run: Run, config: RunConfig, scores: Scores) -> list[LeaderboardRow]:
    """Make a row for each student and each arm that the student was trained on. The largest mean gain comes first."""
    rows = [
        _row(run, student, arm, scores)
        for student in config.students
        for arm in student.arms
        if run.is_leveled(student.name, arm)
    ]
    return sorted(rows, key=lambda row: row.mean_gain, reverse=True)


def _row(run: Run, student: StudentConfig, arm: Arm, scores: Scores) -> LeaderboardRow:
    counts = run.epoch_counts(run.training_dir(student.name, arm))
    before, after = (model.name for model in MeasuredModel.all_of(student.name, [arm]))
    gains = {benchmark: scored.gains(before, after) for benchmark, scored in scores.items()}
    seconds, gpu_seconds = _cost(run, student, arm)
    return LeaderboardRow(
        student=student.name,
        arm=arm,
        model=student.model,
        method=student.level.method.kind,
        num_chosen=counts.num_chosen,
        num_samples=counts.num_samples,
        benchmarks={benchmark: groups["all"] for benchmark, groups in gains.items() if groups is not None},
        seconds=seconds,
        gpu_seconds=gpu_seconds,
    )


def _cost(run: Run, student: StudentConfig, arm: Arm) -> tuple[float, float]:
    """Return the seconds and GPU-seconds of the arm's phases, and of the identification that all arms share."""
    name = student.name
    num_serving_gpus = student.num_replicas * student.gpus_per_replica
    num_training_gpus = student.level.num_workers * student.level.gpus_per_worker
    num_gpus = {
        PhaseKey("identify", name): num_serving_gpus,
        PhaseKey("level", name, arm): num_training_gpus,
        PhaseKey("check", name, arm): num_serving_gpus,
        **{PhaseKey("evaluate", model.name): num_serving_gpus for model in MeasuredModel.all_of(name, [arm])},
    }
    records = {key: phase_record(run, key) for key in num_gpus}
    wall_s = {key: record.wall_s for key, record in records.items() if record is not None}
    gpu_s = sum(num_gpus[key] * seconds for key, seconds in wall_s.items())
    return round(sum(wall_s.values()), 1), round(gpu_s, 1)


def render_leaderboard(rows: Sequence[LeaderboardRow]) -> str:
    """Render the rows as text: scores in percent, gains in points, and the cost in GPU-seconds where GPUs were used."""
    benchmarks = list(dict.fromkeys(name for row in rows for name in row.benchmarks))
    name_width = max(len("student"), *(len(row.label) for row in rows))
    uses_gpus = any(row.gpu_seconds for row in rows)
    widths = {name: max(len(name), len("100.0 100.0 +100.0")) for name in benchmarks}
    head = "".join(f"  {name:>{width}}" for name, width in widths.items())
    lines = [f"{'student':<{name_width}}  {'samples':>8}{head}  {'GPU-s' if uses_gpus else 'seconds':>8}"]
    for row in rows:
        cells = "".join(f"  {_cell(row.benchmarks.get(name)):>{width}}" for name, width in widths.items())
        cost = row.gpu_seconds if uses_gpus else row.seconds
        lines.append(f"{row.label:<{name_width}}  {row.num_chosen:>8}{cells}  {cost:>8.0f}")
    return "\n".join(lines)


def _cell(gain: Gain | None) -> str:
    if gain is None:
        return "-"
    return f"{100 * gain.before.mean:.1f} {100 * gain.after.mean:.1f} {100 * gain.gain.mean:+.1f}"
