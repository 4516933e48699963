"""Read benchmarks, and store their questions in the run as shards. All questions about one image are in one shard."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby

from mpa_ray.config import BenchmarkConfig, EvaluateConfig
from mpa_ray.corpus.places.places import Places
from mpa_ray.evaluation.benchmarks import BENCHMARKS
from mpa_ray.evaluation.labelled_set import LabelledSet
from mpa_ray.observability.progress import Progress
from mpa_ray.records import LabelledQuestion
from mpa_ray.run.markers import shard_name
from mpa_ray.run.run import Run

_SHARD_SIZE = "evaluate.shard_size"


def metric_of(benchmark: BenchmarkConfig, task_metric: str) -> str:
    """The name of the metric that scores a benchmark: the configured metric or, by default, the benchmark's own metric.

    Benchmarks of kind `questions` have no metric of their own, so the task's metric is used.
    """
    if benchmark.metric is not None:
        return benchmark.metric
    return task_metric if benchmark.kind == "questions" else BENCHMARKS[benchmark.kind].metric


def check_questions(config: EvaluateConfig, run: Run, places: Places) -> None:
    """Read the benchmarks whose questions are not in the run yet. Nothing is written.

    Raises:
        ConfigError: a file, a field, an answer or an image is missing.
    """
    for labelled in _labelled_sets(config, places):
        if not run.has_manifest(run.benchmark_dir(labelled.benchmark.label)):
            labelled.check_images(_read(labelled, "check", says_end=False))


def write_questions(config: EvaluateConfig, run: Run, places: Places) -> None:
    """Commit every benchmark's questions. A benchmark whose questions are already in the run is not read again.

    Raises:
        ConfigError: a file, a field, an answer or an image is missing, or the benchmark's files have changed.
    """
    for labelled in _labelled_sets(config, places):
        _write_questions(labelled, config.shard_size, run)


def _labelled_sets(config: EvaluateConfig, places: Places) -> list[LabelledSet]:
    return [LabelledSet(spec, f"evaluate.benchmarks.{i}", places) for i, spec in enumerate(config.benchmarks)]


def _write_questions(labelled: LabelledSet, shard_size: int, run: Run) -> None:
    label = labelled.benchmark.label
    folder = run.benchmark_dir(label)
    # The fingerprint contains neither the files' paths nor the metric, so both may change. After all shards are
    # written, the shard size may change, too.
    fingerprint = {**labelled.identity(), _SHARD_SIZE: shard_size}
    if run.has_manifest(folder):
        run.check_fingerprint(f"{folder}/questions", fingerprint, ignoring=_SHARD_SIZE)
        return
    run.register_fingerprint(f"{folder}/questions", fingerprint)
    questions = _read(labelled, "read")
    labelled.check_images(questions)
    questions.sort(key=lambda question: question.image_id)
    num_shards = 0
    for shard in _shards(questions, shard_size):
        run.questions(label).commit_missing(shard_name(num_shards), shard)
        num_shards += 1
    num_images = len({question.image_id for question in questions})
    run.write_json(run.manifest_path(folder), {"num_images": num_images, "num_shards": num_shards})


def _read(labelled: LabelledSet, verb: str, says_end: bool = True) -> list[LabelledQuestion]:
    questions = []
    with Progress(f"{verb} {labelled.benchmark.label}", None, "questions", says_end=says_end) as progress:
        for question in labelled.questions():
            questions.append(question)
            progress.advance(1)
    return questions


def _shards(questions: Iterable[LabelledQuestion], size: int) -> Iterator[list[LabelledQuestion]]:
    """Cut questions, which must be sorted by image, into shards of at least `size` questions. The last shard may be
    smaller."""
    shard: list[LabelledQuestion] = []
    for _, about_image in groupby(questions, key=lambda question: question.image_id):
        shard += about_image
        if len(shard) >= size:
            yield shard
            shard = []
    if shard:
        yield shard
