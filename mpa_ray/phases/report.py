"""Write a run's report and print its summary."""

from __future__ import annotations

from mpa_ray.config import EvaluationRunConfig
from mpa_ray.observability.progress import say
from mpa_ray.phases.context import RunContext
from mpa_ray.phases.measured_models import upstream_datasets
from mpa_ray.redaction import without_url_secrets
from mpa_ray.report.collect import collect
from mpa_ray.report.next_steps import render_next_steps
from mpa_ray.report.render import render_html, render_table
from mpa_ray.report.summary import EvaluationSummary
from mpa_ray.run.run import REPORT_JSON, REPORT_PAGE


def report(context: RunContext[EvaluationRunConfig]) -> EvaluationSummary:
    """Write report/report.json and report/index.html, and print the summary table and what to do next.

    For a run that only measures models, the report has only scores and times.
    """
    config, run = context.config, context.run
    context.begin(reads=upstream_datasets(config))
    summary = collect(run, config)
    run.write_json(REPORT_JSON, summary.to_json())
    run.storage.write(REPORT_PAGE, without_url_secrets(render_html(config, summary, context.moved_root)).encode())
    say(render_table(summary))
    say(render_next_steps(run, config, summary))
    return summary
