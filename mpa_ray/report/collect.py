"""Collect a run's figures from its files, without Ray and without a model."""

from __future__ import annotations

from typing import get_args

from mpa_ray.config import EvaluationRunConfig, RunConfig
from mpa_ray.evaluation.scores import read_scores
from mpa_ray.report.coverage import coverage
from mpa_ray.report.leaderboard import leaderboard
from mpa_ray.report.problems import collect_problems
from mpa_ray.report.student import student_summary
from mpa_ray.report.summary import EvaluationSummary, PhaseSummary, ReportSummary
from mpa_ray.report.teacher import failed_images, teacher_summary
from mpa_ray.report.training import training_summary
from mpa_ray.run.audit import audit
from mpa_ray.run.phase_record import PhaseKind, phase_records
from mpa_ray.run.recorded_config import recorded_versions
from mpa_ray.run.run import Run


def collect(run: Run, config: EvaluationRunConfig) -> EvaluationSummary:
    """Collect everything that the report shows.

    The result is a `ReportSummary` if the run aligns students and its images are indexed.
    """
    if isinstance(config, RunConfig) and run.is_indexed():
        return collect_alignment(run, config)
    scores = read_scores(run)
    return EvaluationSummary(
        run_dir=run.storage.root,
        task=config.task,
        scores=scores,
        phases=_phases(run),
        versions=recorded_versions(run),
        problems=collect_problems(run, scores),
    )


def collect_alignment(run: Run, config: RunConfig) -> ReportSummary:
    """Collect everything that the report of a run shows if the run aligns students and its images are indexed."""
    shards = run.manifest().shards
    counts = audit(run)
    scores = read_scores(run)
    students = {
        student.name: student_summary(
            student,
            run.verdicts(student.name).rows(shards),
            counts.kept[student.name],
            scores,
            training_summary(run, run.training_dir(student.name)),
        )
        for student in config.students
    }
    return ReportSummary(
        run_dir=run.storage.root,
        task=config.task,
        teacher_model=config.teacher.model,
        counts=counts,
        teacher=teacher_summary(run.annotations.rows(shards), config.teacher),
        failed_images=failed_images(run.annotations.rows(shards)),
        scores=scores,
        coverage=coverage(run, config),
        students=students,
        leaderboard=leaderboard(run, config, scores),
        phases=_phases(run),
        versions=recorded_versions(run),
        problems=collect_problems(run, scores),
    )


def _phases(run: Run) -> list[PhaseSummary]:
    order = get_args(PhaseKind)
    phases = [PhaseSummary(key, record) for key, record in phase_records(run)]
    return sorted(phases, key=lambda phase: order.index(phase.key.kind))
