"""Render the problems of a run as text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from mpa_ray.report.problems import Problems, Unmeasured
from mpa_ray.run.logs import DeathSummary


def problem_lines(problems: Problems, run_dir: str) -> Iterator[str]:
    """Yield the lines at the top of a report: what is missing from the run, and what went wrong in it."""
    if problems.remaining:
        yield f"UNFINISHED: {', '.join(problems.remaining)}. Continue with: {problems.command}"
    yield from (f"NOT MEASURED: {in_words(row)}" for row in problems.unmeasured)
    yield from error_lines(problems.errors)
    yield from (f"MIXED: {sentence}" for sentence in problems.mixed)
    yield from death_lines(problems.deaths, run_dir)


def in_words(row: Unmeasured) -> str:
    """State which model has no score on which benchmark, and why."""
    return f"{row.model} on {row.benchmark}: {row.reason}"


def error_lines(errors: Mapping[str, str]) -> Iterator[str]:
    """Yield the lines about the errors of phases.

    Args:
        errors: The error of each phase, by the phase's label.
    """
    if errors:
        yield "failed:"
    yield from (f"  {named_error(label, error)}" for label, error in errors.items())


def named_error(label: str, error: str) -> str:
    """Return the error with the label of its phase before it, unless the error already begins with the label."""
    return _indented(error if error.startswith(label) else f"{label}: {error}")


def death_lines(deaths: DeathSummary, run_dir: str) -> Iterator[str]:
    """Yield the lines about processes that died: their number in each phase, and the causes and logs of the latest."""
    if not deaths.total:
        return
    numbers = ", ".join(f"{label}: {number}" for label, number in deaths.num_by_phase.items())
    yield f"processes that died: {deaths.total} ({numbers}); their logs are in {run_dir}/logs. The latest:"
    for death in deaths.latest:
        yield f"  {death.at[:19]} {death.phase}: {death.process}: {_indented(death.in_words(run_dir))}"


def _indented(text: str) -> str:
    return "\n    ".join(text.splitlines())
