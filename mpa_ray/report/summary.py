"""Everything that a report shows, as data classes. `report/report.json` has the same content."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from mpa_ray.evaluation.scores import Scores, scores_to_json
from mpa_ray.report.coverage import Coverage
from mpa_ray.report.leaderboard import LeaderboardRow
from mpa_ray.report.problems import Problems
from mpa_ray.report.student import StudentSummary
from mpa_ray.report.teacher import FailedImage, TeacherSummary
from mpa_ray.run.audit import AuditCounts
from mpa_ray.run.phase_record import PhaseKey, PhaseRecord
from mpa_ray.textual import Json


@dataclass(frozen=True)
class PhaseSummary:
    """The time and the work of one phase, summed over all its attempts."""

    key: PhaseKey
    record: PhaseRecord

    @property
    def images_per_s(self) -> float | None:
        """The images/s of the phase (see `mpa_ray.observability.rate`); None if the phase counts no images."""
        return self.record.totals.images_per_s if self.record.totals is not None else None

    def to_json(self) -> dict[str, Json]:
        return {**self.record.to_json(), "images_per_s": self.images_per_s}


@dataclass(frozen=True)
class EvaluationSummary:
    """The figures of a run that only measures models, or whose images are not indexed yet."""

    run_dir: str
    task: str
    scores: Scores
    phases: list[PhaseSummary]
    versions: dict[str, str]
    problems: Problems

    def to_json(self) -> dict[str, Json]:
        """Return the content of `report/report.json`."""
        return {
            "run_dir": self.run_dir,
            "task": self.task,
            "scores": scores_to_json(self.scores),
            "phases": {phase.key.label: phase.to_json() for phase in self.phases},
            "versions": self.versions,
            "problems": self.problems.to_json(),
        }


@dataclass(frozen=True)
class ReportSummary(EvaluationSummary):
    """The figures of a run that aligns students and whose images are indexed."""

    teacher_model: str
    counts: AuditCounts
    teacher: TeacherSummary
    failed_images: list[FailedImage]
    coverage: Coverage
    students: dict[str, StudentSummary]
    leaderboard: list[LeaderboardRow]

    def to_json(self) -> dict[str, Json]:
        return {
            **super().to_json(),
            "teacher_model": self.teacher_model,
            "counts": self.counts.to_json(),
            "teacher": asdict(self.teacher),
            "failed_images": [asdict(image) for image in self.failed_images],
            "coverage": asdict(self.coverage),
            "students": {name: student.to_json() for name, student in self.students.items()},
            "leaderboard": [asdict(row) for row in self.leaderboard],
        }
