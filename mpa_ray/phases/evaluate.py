"""Measure models on benchmarks: every student before and after training, the teacher, and any other model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

from mpa_ray.config import EvaluateConfig, EvaluationRunConfig, ModelConfig, RunConfig
from mpa_ray.errors import ConfigError
from mpa_ray.evaluation.questions import write_questions
from mpa_ray.models.shared_engines import EngineGroup, shared_engines
from mpa_ray.observability.progress import say
from mpa_ray.phases.answering import answer_pass
from mpa_ray.phases.context import RunContext
from mpa_ray.phases.measured_models import measured_models, upstream_datasets, upstream_of_model
from mpa_ray.phases.model_groups import (
    copy_same_model_rows,
    dedupe_by_fingerprint,
    fall_back_to_single,
    run_all_collect_errors,
    target_of,
)
from mpa_ray.phases.score import score
from mpa_ray.pipeline.pass_spec import Pass
from mpa_ray.pipeline.run_pass import Admission, Outstanding, error_recorded, run_missing
from mpa_ray.records import Prediction
from mpa_ray.report.scores import render_scores
from mpa_ray.run.fingerprint import prediction_fingerprint
from mpa_ray.run.joined_datasets import JoinedDatasets
from mpa_ray.run.manifest import Manifest
from mpa_ray.run.phase_record import PhaseKey
from mpa_ray.run.redo import Redo


def evaluate(context: RunContext[EvaluationRunConfig], score_only: bool = False, shows_scores: bool = True) -> None:
    """Have all models answer all benchmarks, then score the answers.

    Args:
        context: The run, which may be one that only measures models.
        score_only: Score the stored predictions; no engine starts.
        shows_scores: Print the scores.

    Raises:
        ConfigError: a benchmark or a model is wrong, or no model is configured.
        RunError: no model has answered a whole benchmark yet, or a pass failed.
    """
    settings = context.config.evaluate
    if settings is None:
        say("evaluate: no benchmark is configured (evaluate.benchmarks), so there is nothing to measure")
        return
    context.begin(reads=upstream_datasets(context.config))
    models = measured_models(context)
    if not models:
        raise ConfigError(
            "evaluate.models",
            [],
            "is empty, so there is no model to measure.",
            "Add a model, or a teacher and students.",
        )
    write_questions(settings, context.run, context.places)
    if not score_only:
        check_unchanged_answers(context, settings)
        predict_groups(context, models)
        run_all_collect_errors({name: partial(predict, context, name) for name in models})
    scores = score(context, settings, list(models))
    if shows_scores:
        say(render_scores(scores))


def prepare_benchmarks(context: RunContext[RunConfig]) -> None:
    """Read the benchmarks into the run, so that errors in them are reported before any engine starts.

    Raises:
        ConfigError: a benchmark is wrong, or stored answers of the teacher or of a model in `evaluate.models` were made
            with other settings.
    """
    if context.config.evaluate is not None:
        check_unchanged_answers(context, context.config.evaluate)
        context.begin()
        write_questions(context.config.evaluate, context.run, context.places)


def check_unchanged_answers(context: RunContext[EvaluationRunConfig], settings: EvaluateConfig) -> None:
    """Compare the settings of the teacher and of `evaluate.models` with those that their stored answers were made with.

    Raises:
        ConfigError: they differ.
    """
    others = {model.name for model in settings.models} | {"teacher"}
    for name, model in measured_models(context).items():
        for benchmark in settings.benchmarks if name in others else ():
            folder = context.run.predictions(benchmark.label, name).folder
            # Computing a fingerprint may read a checkpoint, so it is done only if there is one to compare it with.
            if context.run.fingerprints.fixed(folder) is not None:
                fingerprint = prediction_fingerprint(context.config, context.task, model)
                context.run.check_fingerprint(folder, fingerprint)


def predict(context: RunContext[EvaluationRunConfig], name: str, admission: Admission = nullcontext) -> None:
    """Have one model answer all benchmarks, whose questions must already be in the run.

    Args:
        context: The run.
        name: A key of `measured_models`.
        admission: See `run_shards`.
    """
    with error_recorded(context.run, PhaseKey("evaluate", name)):
        _predict(context, name, admission)


def _predict(context: RunContext[EvaluationRunConfig], name: str, admission: Admission) -> None:
    run = context.run
    context.begin(reads=upstream_of_model(context.config, name))
    models = measured_models(context)
    fingerprints = {n: prediction_fingerprint(context.config, context.task, m) for n, m in models.items()}
    fingerprint = fingerprints[name]
    same_model = [other for other in models if other != name and fingerprints[other] == fingerprint]
    outstanding = Outstanding()
    for benchmark, manifest in _manifests(context).items():
        predictions = run.predictions(benchmark, name)
        run.register_fingerprint(predictions.folder, fingerprint)
        label = PhaseKey("evaluate", name, benchmark=benchmark).label
        others = {other: run.predictions(benchmark, other) for other in same_model}
        copy_same_model_rows(run, label, predictions, others, fingerprint, manifest.shards)
        redo = Redo(predictions, run.questions(benchmark), context.again.reasons)
        outstanding += Outstanding.of(predictions, manifest, redo).below(benchmark)
    work = _pass_over_benchmarks(context, EngineGroup.single(name, models[name]))
    context.failures.add(work.key.label, run_missing(run, work, outstanding, admission).may_pass)


def predict_groups(
    context: RunContext[EvaluationRunConfig],
    models: Mapping[str, ModelConfig],
    admission_of: Callable[[EngineGroup], Admission] = lambda _: nullcontext,
) -> None:
    """Run one pass for each group of models that can share an engine. Call `predict` afterwards, for missing shards.

    Args:
        context: The run.
        models: Models by their names in `measured_models`.
        admission_of: Returns the admission of an engine (see `run_shards`); by default, engines need no admission.
    """
    fingerprint_of = partial(prediction_fingerprint, context.config, context.task)
    for group in shared_engines(dedupe_by_fingerprint(models, fingerprint_of), context.config.object_store):
        if len(group.names) > 1:
            with fall_back_to_single(group):
                predict_group(context, group, admission_of(group))


def predict_group(
    context: RunContext[EvaluationRunConfig], group: EngineGroup, admission: Admission = nullcontext
) -> None:
    """Have the models of one engine answer the shards that all of them lack. `predict` processes the other shards."""
    run = context.run
    context.begin(reads=[dataset for name in group.names for dataset in upstream_of_model(context.config, name)])
    models = measured_models(context)
    manifests = _manifests(context)
    missing = {name: _missing_shards(context, name, models[name], manifests) for name in group.names}
    # The pass covers only shards that all models lack, so leave out models that lack none.
    group = group.only(name for name in group.names if any(missing[name].values()))
    if len(group.names) < 2:
        return
    outstanding = Outstanding()
    for benchmark, manifest in manifests.items():
        first = Outstanding.of(run.predictions(benchmark, group.names[0]), manifest)
        lacking = [shard for shard in first.missing if all(shard in missing[n][benchmark] for n in group.names)]
        num_done = manifest.estimate_images(manifest.num_shards - len(lacking))
        outstanding += replace(first, missing=lacking, num_images_done=num_done).below(benchmark)
    if outstanding.missing:
        work = _pass_over_benchmarks(context, group)
        context.failures.add(work.key.label, run_missing(run, work, outstanding, admission).may_pass)


def _missing_shards(
    context: RunContext[EvaluationRunConfig], name: str, model: ModelConfig, manifests: Mapping[str, Manifest]
) -> dict[str, set[str]]:
    """The shards of each benchmark that the model has not answered."""
    fingerprint = prediction_fingerprint(context.config, context.task, model)
    missing = {}
    for benchmark, manifest in manifests.items():
        predictions = context.run.predictions(benchmark, name)
        context.run.register_fingerprint(predictions.folder, fingerprint)
        # `predict` also makes withdrawn answers again.
        missing[benchmark] = set(predictions.markers.without_marker(manifest.shards))
    return missing


def _pass_over_benchmarks(context: RunContext[EvaluationRunConfig], group: EngineGroup) -> Pass[Any]:
    run, benchmarks = context.run, _benchmarks(context)

    def answers_of(name: str) -> JoinedDatasets[Prediction]:
        return JoinedDatasets({benchmark: run.predictions(benchmark, name) for benchmark in benchmarks})

    questions = JoinedDatasets({benchmark: run.questions(benchmark) for benchmark in benchmarks})
    key = PhaseKey("evaluate", group.names[0])
    return answer_pass(context, key, group, questions, target_of(group, answers_of))


def _manifests(context: RunContext[EvaluationRunConfig]) -> dict[str, Manifest]:
    """The manifests of the benchmarks' questions, by the benchmarks' names."""
    run = context.run
    return {benchmark: run.manifest(run.benchmark_dir(benchmark)) for benchmark in _benchmarks(context)}


def _benchmarks(context: RunContext[EvaluationRunConfig]) -> list[str]:
    settings: EvaluateConfig | None = context.config.evaluate
    assert settings is not None, "without benchmarks there is nothing to predict"
    return [benchmark.label for benchmark in settings.benchmarks]
