"""Measure models on benchmarks: every student before and after, the teacher, and whatever else is named."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

from mpa_ray.config import EvaluateConfig, EvaluationRunConfig, ModelConfig, RunConfig
from mpa_ray.errors import ConfigError
from mpa_ray.evaluation.questions import lay_out
from mpa_ray.models.shared_engines import EngineGroup, shared_engines
from mpa_ray.observability.progress import say
from mpa_ray.phases.answering import answer_pass
from mpa_ray.phases.context import RunContext
from mpa_ray.phases.measured_models import measured_models, upstream_of, upstream_of_all
from mpa_ray.phases.model_groups import (
    copy_same_model_rows,
    dedupe_by_fingerprint,
    fall_back_to_single,
    run_all_collect_errors,
    target_of,
)
from mpa_ray.phases.score import score
from mpa_ray.pipeline.pass_spec import Pass
from mpa_ray.pipeline.run_pass import Admission, Outstanding, run_missing
from mpa_ray.records import Prediction
from mpa_ray.run.dataset import JoinedDatasets
from mpa_ray.run.fingerprint import prediction_fingerprint
from mpa_ray.run.phase_record import PhaseKey


def evaluate(context: RunContext[EvaluationRunConfig], score_only: bool = False) -> None:
    """Have all models answer all benchmarks, then score them.

    Args:
        context: A run with or without a source, a teacher and students.
        score_only: Score what was predicted earlier; no engine starts.

    Raises:
        ConfigError: no benchmark or no model is named, or one of them is wrong.
        RunError: no model has answered a whole benchmark yet.
    """
    settings = context.config.evaluate
    if settings is None:
        say("evaluate: no benchmark is configured (evaluate.benchmarks), so there is nothing to measure")
        return
    context.begin(reads=upstream_of_all(context.config))
    models = measured_models(context)
    if not models:
        raise ConfigError("evaluate.models", [], "names no model.", "Name one, or add a teacher and students.")
    lay_out(settings, context.run, context.places)
    if not score_only:
        predict_groups(context, models)
        run_all_collect_errors({name: partial(predict, context, name) for name in models})
    score(context, settings, list(models))


def lay_out_benchmarks(context: RunContext[RunConfig]) -> None:
    """Read the benchmarks, so that their errors show before any engine starts."""
    if context.config.evaluate is not None:
        context.begin()
        lay_out(context.config.evaluate, context.run, context.places)


def predict(context: RunContext[EvaluationRunConfig], name: str, admission: Admission = nullcontext) -> None:
    """One model's answers to all benchmarks, which are laid out.

    Args:
        context: The run.
        name: As in `measured_models`.
        admission: See `run_shards`.
    """
    run = context.run
    context.begin(reads=upstream_of(context.config, name))
    models = measured_models(context)
    fingerprints = {n: prediction_fingerprint(context.config, context.task, m) for n, m in models.items()}
    fingerprint = fingerprints[name]
    same_model = [other for other in models if other != name and fingerprints[other] == fingerprint]
    outstanding = Outstanding()
    for label in _labels(_settings(context)):
        key, manifest = PhaseKey("evaluate", name, benchmark=label), run.manifest(run.benchmark_dir(label))
        predictions = run.predictions(label, name)
        run.register_fingerprint(predictions.folder, fingerprint)
        others = {other: run.predictions(label, other) for other in same_model}
        copy_same_model_rows(run, key.label, predictions, others, fingerprint, manifest.shards)
        outstanding += Outstanding.of(predictions, manifest).below(label)
    work = _pass_over_benchmarks(context, EngineGroup.single(name, models[name]))
    run_missing(run, work, outstanding, admission)


def predict_groups(
    context: RunContext[EvaluationRunConfig],
    models: Mapping[str, ModelConfig],
    admission_of: Callable[[EngineGroup], Admission] = lambda _: nullcontext,
) -> None:
    """The answers of those models that can share an engine; `predict` does what is left of each.

    Args:
        context: The run.
        models: By their names in `measured_models`.
        admission_of: How an engine is admitted, see `run_shards`; at once by default.
    """
    fingerprint_of = partial(prediction_fingerprint, context.config, context.task)
    for group in shared_engines(dedupe_by_fingerprint(models, fingerprint_of), context.config.object_store):
        if len(group.names) > 1:
            with fall_back_to_single(group):
                predict_group(context, group, admission_of(group))


def predict_group(
    context: RunContext[EvaluationRunConfig], group: EngineGroup, admission: Admission = nullcontext
) -> None:
    """One engine's models on the shards that none of them has answered; `predict` does what is left of each."""
    run = context.run
    context.begin(reads=[dataset for name in group.names for dataset in upstream_of(context.config, name)])
    models = measured_models(context)
    labels = _labels(_settings(context))
    manifests = {label: run.manifest(run.benchmark_dir(label)) for label in labels}
    missing: dict[str, dict[str, set[str]]] = {}
    for name in group.names:
        fingerprint = prediction_fingerprint(context.config, context.task, models[name])
        missing[name] = {}
        for label in labels:
            predictions = run.predictions(label, name)
            run.register_fingerprint(predictions.folder, fingerprint)
            missing[name][label] = set(predictions.missing(manifests[label].shards))
    # A model that is done would keep the others from being asked together.
    group = group.only(name for name in group.names if any(missing[name].values()))
    if len(group.names) < 2:
        return
    outstanding = Outstanding()
    for label, manifest in manifests.items():
        first = Outstanding.of(run.predictions(label, group.names[0]), manifest)
        left = [shard for shard in first.missing if all(shard in missing[name][label] for name in group.names)]
        done = manifest.estimate_images(manifest.num_shards - len(left))
        outstanding += replace(first, missing=left, num_images_done=done).below(label)
    if outstanding.missing:
        run_missing(run, _pass_over_benchmarks(context, group), outstanding, admission)


def _pass_over_benchmarks(context: RunContext[EvaluationRunConfig], group: EngineGroup) -> Pass[Any]:
    run, labels = context.run, _labels(_settings(context))

    def answers_of(name: str) -> JoinedDatasets[Prediction]:
        return JoinedDatasets({label: run.predictions(label, name) for label in labels})

    questions = JoinedDatasets({label: run.questions(label) for label in labels})
    key = PhaseKey("evaluate", group.names[0])
    return answer_pass(context, key, group, questions, target_of(group, answers_of))


def _labels(settings: EvaluateConfig) -> list[str]:
    return [benchmark.label for benchmark in settings.benchmarks]


def _settings(context: RunContext[EvaluationRunConfig]) -> EvaluateConfig:
    assert context.config.evaluate is not None, "without benchmarks there is nothing to predict"
    return context.config.evaluate
