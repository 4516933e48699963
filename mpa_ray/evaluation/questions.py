"""Read benchmarks into a run: their questions in shards, with all questions about an image in one shard."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import groupby, islice

from mpa_ray.config import BenchmarkConfig, EvaluateConfig
from mpa_ray.corpus.places.places import Places
from mpa_ray.errors import ConfigError
from mpa_ray.evaluation.benchmarks import BENCHMARKS, check_images, question_files, read_benchmark
from mpa_ray.evaluation.benchmarks.finding import find_files
from mpa_ray.observability.progress import Progress
from mpa_ray.records import LabelledQuestion, ParitySample
from mpa_ray.run.dataset import shard_name
from mpa_ray.run.run import Run

_MAX_WHOLE_BYTES = 2**26
_END_BYTES = 2**20


def metric_of(benchmark: BenchmarkConfig, task_metric: str) -> str:
    """The metric that scores a benchmark: the configured one, or the benchmark's own.

    Benchmarks of kind `questions` have no metric of their own, so the task's metric is used.
    """
    if benchmark.metric is not None:
        return benchmark.metric
    return task_metric if benchmark.kind == "questions" else BENCHMARKS[benchmark.kind].metric


def labelled_samples(benchmark: BenchmarkConfig, places: Places) -> Iterator[ParitySample]:
    """Yield a labelled set's questions as training samples, each with its most frequent reference answer.

    Raises:
        ConfigError: a file, a field or an answer is missing.
    """
    for number, question in enumerate(islice(read_benchmark(benchmark, places), benchmark.limit)):
        answer = Counter(question.answers).most_common(1)[0][0]
        name = f"{benchmark.label}:{number}:{question.question_id}"
        yield ParitySample(name, question.image_id, question.uri, question.question, answer, student_answer="")


def write_questions(config: EvaluateConfig, run: Run, places: Places) -> None:
    """Commit every benchmark's questions; a benchmark that the run already has is not read again.

    Raises:
        ConfigError: a file, a field, an answer or an image is missing, or the benchmark's files have changed.
    """
    for index, benchmark in enumerate(config.benchmarks):
        try:
            _write_questions(benchmark, config.shard_size, run, places)
        except ConfigError as error:
            raise error.with_field(error.field.replace("benchmark.", f"evaluate.benchmarks.{index}.", 1)) from error


def _write_questions(benchmark: BenchmarkConfig, shard_size: int, run: Run, places: Places) -> None:
    folder = run.benchmark_dir(benchmark.label)
    run.register_fingerprint(f"{folder}/questions", _fingerprint(benchmark, shard_size, places))
    if run.has_manifest(folder):
        return
    with Progress(f"read {benchmark.label}", None, "questions") as progress:
        questions = []
        for question in islice(read_benchmark(benchmark, places), benchmark.limit):
            questions.append(question)
            progress.advance(1)
    check_images(questions)
    questions.sort(key=lambda question: question.image_id)
    num_shards = 0
    for shard in _shards(questions, shard_size):
        run.questions(benchmark.label).commit(shard_name(num_shards), shard)
        num_shards += 1
    num_images = len({question.image_id for question in questions})
    run.write_json(run.manifest_path(folder), {"num_images": num_images, "num_shards": num_shards})


def _shards(questions: Iterable[LabelledQuestion], size: int) -> Iterator[list[LabelledQuestion]]:
    """Cut questions, sorted by image, into shards of at least `size` questions; the last shard may be smaller."""
    shard: list[LabelledQuestion] = []
    for _, about_image in groupby(questions, key=lambda question: question.image_id):
        shard += about_image
        if len(shard) >= size:
            yield shard
            shard = []
    if shard:
        yield shard


def _fingerprint(benchmark: BenchmarkConfig, shard_size: int, places: Places) -> dict[str, object]:
    """The fingerprint of a benchmark's questions. It leaves out the files' paths and the metric, which may change."""
    settings = benchmark.model_dump(mode="json", include={"kind", "split", "columns", "limit"})
    files = [file.uri for file in question_files(benchmark, places)]
    if benchmark.annotations is not None:
        files += [file.uri for file in find_files(places, benchmark.annotations, field="benchmark.annotations")]
    digest = hashlib.sha256()
    for uri in files:
        try:
            digest.update(_content_sample(places, uri))
        except OSError as error:
            raise ConfigError(
                "benchmark.path",
                uri,
                f"cannot be read ({error.strerror or error}).",
                "Check the path, the connection and your credentials.",
            ) from error
    return {**settings, "files": f"sha256:{digest.hexdigest()[:16]}", "evaluate.shard_size": shard_size}


def _content_sample(places: Places, uri: str) -> bytes:
    """The bytes of a file for the fingerprint: all bytes up to 64 MiB, or the size and both ends of a larger file.

    The end of a Parquet file holds statistics of its rows, so it changes when the rows change.
    """
    place = places.of(uri)
    size = place.size(uri)
    if size <= _MAX_WHOLE_BYTES:
        return place.read(uri)
    return str(size).encode() + place.read(uri, 0, _END_BYTES) + place.read(uri, size - _END_BYTES, _END_BYTES)
