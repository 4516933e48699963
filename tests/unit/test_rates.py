"""images/s has one definition: the progress line, status, the report and plan agree about a scripted run."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterable, Sequence
from typing import Any

import pytest

from mpa_ray.config import RunConfig
from mpa_ray.phases.annotate import annotation_pass
from mpa_ray.phases.context import RunContext
from mpa_ray.phases.index import index
from mpa_ray.pipeline.pass_spec import Pass, ShardDone
from mpa_ray.pipeline.run_pass import Outstanding, run_missing
from mpa_ray.report.problems import collect_problems
from mpa_ray.report.render import render_html, render_table
from mpa_ray.report.render_status import render_status
from mpa_ray.report.status import status
from mpa_ray.report.summary import EvaluationSummary, PhaseSummary
from mpa_ray.run.phase_record import PassTotals, phase_records
from mpa_ray.sizing.run_rates import RunRates

VISIT_S = 4.0


def in_engines_at_once(_: Pass[Any], shards: Iterable[str], __: Sequence[str]) -> Generator[ShardDone, None, None]:
    """Every shard has been in an engine for the last seconds, at the same time as the others."""
    for shard in shards:
        yield ShardDone(shard, num_images=8, visit_s=VISIT_S)


def rates_in(text: str) -> set[str]:
    return set(re.findall(r"([\d.,]+) images/s", text))


def test_all_that_show_images_per_s_agree(scripted_config: RunConfig, capsys: pytest.CaptureFixture[str]) -> None:
    context = RunContext.from_checked(scripted_config)
    index(context)
    capsys.readouterr()
    run = context.run
    outstanding = Outstanding.of(run.annotations, run.manifest())
    run_missing(run, annotation_pass(context), outstanding, stream=in_engines_at_once)
    num_images = 8 * run.manifest().num_shards
    shown = f"{num_images / VISIT_S:.1f}"
    assert rates_in(capsys.readouterr().out) == {shown}
    assert rates_in(render_status(status(run))) == {shown}
    phases = [PhaseSummary(key, record) for key, record in phase_records(run)]
    summary = EvaluationSummary(run.storage.root, "demo_world", {}, phases, {}, collect_problems(run, {}))
    assert rates_in(render_table(summary)) == {shown}
    assert f'<td class="n">{shown}</td>' in render_html(scripted_config, summary)
    planned = RunRates.of_run(run).annotated_images_per_s
    assert planned == pytest.approx(num_images / VISIT_S, rel=0.01)
    in_status = next(phase.per_s for phase in status(run).phases if phase.name == "annotate")
    assert planned == summary.phases[0].images_per_s == in_status


def test_plan_assumes_the_share_of_one_replica_and_one_model() -> None:
    """Two models share each of two engines: an image counts once in images/s, and for each model in plan."""
    record = PassTotals(num_images=100, num_images_by_models=200, working_s=10.0, usage=None)  # type: ignore[arg-type]
    assert (record.images_per_s, record.images_per_s_of(2)) == (10.0, 10.0)
    idle = PassTotals(0, 0, 0.0, None)  # type: ignore[arg-type]
    assert (idle.images_per_s, idle.images_per_s_of(2)) == (None, None)
