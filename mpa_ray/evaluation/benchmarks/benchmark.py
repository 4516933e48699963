"""All kinds of benchmarks: their readers, default metrics and sources."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from mpa_ray.config import BenchmarkConfig
from mpa_ray.corpus.places.local import storable_uri
from mpa_ray.corpus.places.places import Places
from mpa_ray.errors import ConfigError
from mpa_ray.evaluation.benchmarks.chartqa import read_chartqa
from mpa_ray.evaluation.benchmarks.coco import answer_files, read_vqa
from mpa_ray.evaluation.benchmarks.documents import read_documents
from mpa_ray.evaluation.benchmarks.file import File
from mpa_ray.evaluation.benchmarks.finding import JSON_OR_PARQUET
from mpa_ray.evaluation.benchmarks.gqa import read_gqa
from mpa_ray.evaluation.benchmarks.inputs import Inputs
from mpa_ray.evaluation.benchmarks.medical import read_plain_pairs, read_slake
from mpa_ray.evaluation.benchmarks.questions import read_questions
from mpa_ray.evaluation.benchmarks.scene_text import read_stvqa, read_textvqa
from mpa_ray.records import LabelledQuestion
from mpa_ray.textual import identifier, readable


@dataclass(frozen=True)
class Benchmark:
    """A kind of benchmark."""

    name: str
    metric: str
    """The default metric, a key of `mpa_ray.metrics.METRICS`."""
    read: Callable[[Inputs], Iterator[LabelledQuestion]]
    sources: tuple[str, ...]
    """Who defines the benchmark and the format of its files."""
    settings: frozenset[str] = frozenset()
    """Which of the settings `annotations` and `columns` apply to the benchmark."""
    endings: tuple[str, ...] = JSON_OR_PARQUET
    """The file name endings of the benchmark's files, in lower case and with the dot."""


BENCHMARKS = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark("textvqa", "textvqa_m4c", read_textvqa, ("arXiv 1904.08920", "textvqa.org")),
        Benchmark("stvqa", "anls", read_stvqa, ("arXiv 1905.13648", "rrc.cvc.uab.es, challenge 11")),
        Benchmark("chartqa", "relaxed_accuracy", read_chartqa, ("arXiv 2203.10244", "github.com/vis-nlp/ChartQA")),
        Benchmark(
            "okvqa", "vqa_accuracy", read_vqa, ("arXiv 1906.00067", "okvqa.allenai.org"), frozenset({"annotations"})
        ),
        Benchmark("vqav2", "vqa_accuracy", read_vqa, ("arXiv 1612.00837", "visualqa.org"), frozenset({"annotations"})),
        Benchmark("docvqa", "anls", read_documents, ("arXiv 2007.00398", "rrc.cvc.uab.es, challenge 17")),
        Benchmark("infovqa", "anls", read_documents, ("arXiv 2104.12756", "rrc.cvc.uab.es, challenge 17")),
        Benchmark("gqa", "exact_match", read_gqa, ("arXiv 1902.09506", "cs.stanford.edu/people/dorarad/gqa")),
        Benchmark("pathvqa", "exact_match", read_plain_pairs, ("arXiv 2003.10286",)),
        Benchmark("vqa_rad", "exact_match", read_plain_pairs, ("doi 10.1038/sdata.2018.251",)),
        Benchmark("slake", "exact_match", read_slake, ("arXiv 2102.09542", "www.med-vqa.com/slake")),
        Benchmark("questions", "exact_match", read_questions, ("the user",), frozenset({"columns"})),
    )
}


def question_files(spec: BenchmarkConfig, places: Places) -> list[File]:
    """The files with a benchmark's questions. Raises ConfigError if there are no files, or if they belong to several
    splits."""
    return _inputs(spec, places).files


def labelled_files(spec: BenchmarkConfig, places: Places) -> list[File]:
    """The files with a benchmark's questions and answers. Raises ConfigError as `question_files` does."""
    inputs = _inputs(spec, places)
    return inputs.files + (answer_files(inputs) if _benchmark_of(spec).read is read_vqa else [])


def read_benchmark(spec: BenchmarkConfig, places: Places) -> Iterator[LabelledQuestion]:
    """Yield a benchmark's questions, in the order of its files. All questions about an image have the same image id and
    URI.

    This does not check that the images exist; `check_images` does.

    Raises:
        ConfigError: a file, a field or the answers are missing, or an id occurs twice.
    """
    benchmark = _benchmark_of(spec)
    seen: set[str] = set()
    uris: dict[str, str] = {}
    for question in map(_storable, benchmark.read(_inputs(spec, places))):
        if question.question_id in seen:
            raise ConfigError(
                "benchmark.path",
                spec.path,
                f"has question_id {question.question_id!r} twice.",
                "Give one split, and make the ids unique.",
            )
        seen.add(question.question_id)
        # A mirror repeats an image in every row with a question about it. The first copy is used for all these rows.
        uri = uris.setdefault(question.image_id, question.uri)
        yield question if uri == question.uri else replace(question, uri=uri)
    if not seen:
        raise ConfigError("benchmark.path", spec.path, "holds no questions.", "Check that the file is complete.")


def _storable(question: LabelledQuestion) -> LabelledQuestion:
    """The question with texts that UTF-8 can encode; different ids stay different."""
    return replace(
        question,
        question_id=identifier(question.question_id),
        image_id=identifier(question.image_id),
        uri=storable_uri(question.uri),
        question=readable(question.question),
        answers=[readable(answer) for answer in question.answers],
        family=readable(question.family),
        answer_type=None if question.answer_type is None else readable(question.answer_type),
        split=readable(question.split),
    )


def _inputs(spec: BenchmarkConfig, places: Places) -> Inputs:
    return Inputs(spec, places, BENCHMARKS[spec.kind].endings)


def _benchmark_of(spec: BenchmarkConfig) -> Benchmark:
    benchmark = BENCHMARKS[spec.kind]
    for setting, value in (("annotations", spec.annotations), ("columns", spec.columns)):
        if value and setting not in benchmark.settings:
            raise ConfigError(f"benchmark.{setting}", value, f"does not apply to {spec.kind}.", "Leave it out.")
    return benchmark
