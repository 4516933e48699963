"""Score stored predictions. No model is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from mpa_ray.config import Arm, BenchmarkConfig, EvaluateConfig, EvaluationRunConfig, RunConfig, StudentConfig
from mpa_ray.errors import RunError
from mpa_ray.evaluation.questions import metric_of
from mpa_ray.evaluation.score import score_benchmark
from mpa_ray.evaluation.scores import BenchmarkScores, Scores, write_scores
from mpa_ray.observability.progress import Progress, say
from mpa_ray.phases.context import RunContext, installed_versions
from mpa_ray.phases.measured_models import comparisons
from mpa_ray.report.card import model_card
from mpa_ray.report.card_usage import section_use


def score(context: RunContext[EvaluationRunConfig], settings: EvaluateConfig, models: Sequence[str]) -> Scores:
    """Write `evaluation/scores.json`, and add the scores to the model cards.

    Args:
        context: The run.
        settings: The benchmarks, and the models to compare.
        models: The names of measured models. A model is not scored on a benchmark that it has not answered completely;
            a warning names the model.

    Raises:
        RunError: no model has answered a whole benchmark yet.
    """
    scored = {
        benchmark.label: _score_benchmark(context, settings, benchmark, models) for benchmark in settings.benchmarks
    }
    scores = {label: of_benchmark for label, of_benchmark in scored.items() if of_benchmark is not None}
    if not scores:
        raise RunError("no model has answered a whole benchmark yet: run mpa-ray evaluate without --score-only.")
    write_scores(context.run, scores)
    if isinstance(context.config, RunConfig):
        for student in context.config.students:
            for arm in student.arms:
                _rewrite_model_cards(context, context.config, student, arm, scores)
    return scores


def _score_benchmark(
    context: RunContext[EvaluationRunConfig],
    settings: EvaluateConfig,
    benchmark: BenchmarkConfig,
    models: Sequence[str],
) -> BenchmarkScores | None:
    """Score the models on one benchmark; None if no model can be scored.

    A model is left out, with a warning, if it has not answered all shards or did not reply to any question.
    """
    run, label = context.run, benchmark.label
    shards = run.manifest(run.benchmark_dir(label)).shards
    answered = {}
    for name in models:
        predictions = run.predictions(label, name)
        num_missing = len(predictions.missing(shards))
        if num_missing:
            say(f"WARNING: {name} has not answered {num_missing} of {len(shards)} shards of {label} yet")
        else:
            answered[name] = partial(predictions.rows, shards)
    if not answered:
        return None
    metric = metric_of(benchmark, context.task.metric)
    with Progress(f"score {label}", None, "models") as progress:
        scored = score_benchmark(metric, answered, comparisons(context.config, settings), progress)
    for name in scored.without_replies:
        say(f"WARNING: {name} is not scored on {label}: none of its questions got a reply")
    scored = scored.without(scored.without_replies)
    return scored if scored.models else None


def _rewrite_model_cards(
    context: RunContext[EvaluationRunConfig], config: RunConfig, student: StudentConfig, arm: Arm, scores: Scores
) -> None:
    run = context.run
    if not run.is_leveled(student.name, arm):
        return
    folder = run.training_dir(student.name, arm)
    counts = run.epoch_counts(folder)
    for export in ("merged", "adapter"):
        path = f"{folder}/{export}/README.md"
        if run.storage.exists(path):
            # Keep this section, because writing it needs the processor, which only the training loads.
            use = section_use(run.storage.read(path).decode())
            card = model_card(config, student, arm, counts, installed_versions(), use, scores)
            run.storage.write(path, card.encode())
