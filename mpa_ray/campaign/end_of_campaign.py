"""The end of a campaign: the scores, the report, and a check of the report's counts."""

from __future__ import annotations

from functools import partial

from mpa_ray.config import EvaluationRunConfig
from mpa_ray.errors import ConfigError, RunError
from mpa_ray.phases.context import RunContext
from mpa_ray.phases.evaluate import evaluate
from mpa_ray.phases.report import report
from mpa_ray.report.summary import ReportSummary

_NUM_PROBLEMS_SHOWN = 3


class CountsDiffer(RunError):
    """Rows of a finished run are missing, repeated or damaged."""


def score_and_report(context: RunContext[EvaluationRunConfig]) -> dict[str, Exception]:
    """Score the answers and write the report, even if earlier phases failed.

    The scores are not printed here, because the report's summary shows them. Returns the errors, keyed by a description
    of the work that failed. The descriptions contain spaces, so they differ from all names of students.
    """
    failures: dict[str, Exception] = {}
    calls = {
        "writing the scores": partial(evaluate, context, score_only=True, shows_scores=False),
        "writing the report": partial(_report_and_check, context),
    }
    for name, call in calls.items():
        try:
            call()
        except (ConfigError, RunError, OSError) as error:
            failures[name] = error
    return failures


def _report_and_check(context: RunContext[EvaluationRunConfig]) -> None:
    """Write the report. Raises CountsDiffer if its counts show that rows are missing, repeated or damaged."""
    summary = report(context)
    problems = summary.counts.problems if isinstance(summary, ReportSummary) else []
    if problems:
        shown = "; ".join(problems[:_NUM_PROBLEMS_SHOWN])
        more = f"; and {len(problems) - _NUM_PROBLEMS_SHOWN} more" if len(problems) > _NUM_PROBLEMS_SHOWN else ""
        run_dir = context.run.storage.root
        raise CountsDiffer(
            f"the audit of the run has found problems: {shown}{more}. mpa-ray audit {run_dir} --deep names damaged "
            "files with their remedies."
        )
