"""Score stored predictions; metrics are views of them."""

from __future__ import annotations

from functools import partial
from typing import Any

from mpa_ray.config import Arm, EvaluateConfig, EvaluationRunConfig, RunConfig, StudentConfig
from mpa_ray.errors import RunError
from mpa_ray.evaluation.questions import metric_of
from mpa_ray.evaluation.score import score_benchmark
from mpa_ray.observability.progress import Progress, say
from mpa_ray.phases.context import RunContext, installed_versions
from mpa_ray.phases.measured_models import comparisons
from mpa_ray.records import EpochCounts
from mpa_ray.report.card import model_card
from mpa_ray.report.scores import render_scores
from mpa_ray.run.run import SCORES


def score(context: RunContext[EvaluationRunConfig], settings: EvaluateConfig, models: list[str]) -> None:
    """Write `evaluation/scores.json` and the scores in the model cards, and print the tables.

    Raises:
        RunError: no model has answered a whole benchmark yet.
    """
    scores = _scored(context, settings, models)
    context.run.write_json(SCORES, scores)
    if isinstance(context.config, RunConfig):
        for student in context.config.students:
            for arm in student.arms:
                _write_cards(context, context.config, student, arm, scores)
    say(render_scores(scores))


def _scored(context: RunContext[EvaluationRunConfig], settings: EvaluateConfig, models: list[str]) -> dict[str, Any]:
    """Of each benchmark its metric, the models' scores and the paired differences."""
    run, scores = context.run, {}
    for benchmark in settings.benchmarks:
        shards = run.manifest(run.benchmark_dir(benchmark.label)).shards
        predictions = {name: run.predictions(benchmark.label, name) for name in models}
        missing = {name: len(dataset.missing(shards)) for name, dataset in predictions.items()}
        for name, number in missing.items():
            if number:
                say(f"WARNING: {name} has not answered {number} of {len(shards)} shards of {benchmark.label} yet")
        rows = {name: partial(dataset.rows, shards) for name, dataset in predictions.items() if not missing[name]}
        if rows:
            metric = metric_of(benchmark, context.task.metric)
            with Progress(f"score {benchmark.label}", None, "models") as progress:
                pairs = comparisons(context.config, settings)
                scores[benchmark.label] = score_benchmark(metric, rows, pairs, progress)
    if not scores:
        raise RunError("no model has answered a whole benchmark yet: run jobs/evaluate.py without --score-only.")
    return scores


def _write_cards(
    context: RunContext[EvaluationRunConfig],
    config: RunConfig,
    student: StudentConfig,
    arm: Arm,
    scores: dict[str, Any],
) -> None:
    run, folder = context.run, context.run.student_dir(student.name, arm)
    if not run.is_leveled(student.name, arm):
        return
    counts = EpochCounts(**run.read_json(f"{folder}/epoch/manifest.json"))
    card = model_card(config, student, arm, counts, installed_versions(), scores).encode()
    for part in ("merged", "adapter"):
        if run.storage.exists(f"{folder}/{part}/README.md"):
            run.storage.write(f"{folder}/{part}/README.md", card)
