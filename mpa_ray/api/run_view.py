"""Read a run from its files: rows as Arrow tables, scores, figures and progress."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from mpa_ray.config import EvaluationRunConfig, ObjectStoreConfig
from mpa_ray.errors import ConfigError, did_you_mean
from mpa_ray.evaluation.scores import BenchmarkScores, read_scores
from mpa_ray.records import ParitySample, to_table
from mpa_ray.report.collect import collect
from mpa_ray.report.phase_status import Status
from mpa_ray.report.status import status
from mpa_ray.report.summary import EvaluationSummary
from mpa_ray.run.dataset import ShardedDataset
from mpa_ray.run.parity_export import parity_tables
from mpa_ray.run.prefetch import prefetch
from mpa_ray.run.recorded_config import models_by_benchmark, read_config, student_names
from mpa_ray.run.run import Run
from mpa_ray.storage.open import open_storage

if TYPE_CHECKING:
    import pyarrow as pa


def open_run(path: str | Path, object_store: ObjectStoreConfig | None = None) -> RunView:
    """Open a run for reading, during or after its execution. Nothing is written, and no model is loaded.

    Args:
        path: The run directory: a folder or an `s3://` prefix.
        object_store: How to access objects with `s3://` URIs, such as
            `ObjectStoreConfig(endpoint_url="http://minio:9000")`. The default is the server at `AWS_ENDPOINT_URL` or,
            if that is not set, AWS. Credentials come from boto3's usual sources.

    Raises:
        ConfigError: the directory holds no run, or a run that another version wrote in another format.
        OSError: the object store cannot be reached.
    """
    if not isinstance(path, str | PurePath):
        remedy = "Pass a run directory, such as config.run_dir."
        raise ConfigError("path", path, f"is a {type(path).__name__}, not a path.", remedy)
    if not isinstance(object_store, ObjectStoreConfig | None):
        remedy = "Pass one, such as ObjectStoreConfig(endpoint_url=...)."
        raise ConfigError(
            "object_store", object_store, f"is a {type(object_store).__name__}, not an ObjectStoreConfig.", remedy
        )
    if str(path).endswith((".yaml", ".yml")) and Path(path).is_file():
        raise ConfigError("path", str(path), "is a file, and not a run directory.", "Pass its run_dir.")
    return RunView(Run(open_storage(str(path), object_store)))


class RunView:
    """The content of a run.

    Tables have one row for each row of the dataset, in the order of the corpus. Their columns are those of the row
    types in `mpa_ray.records`. They hold the shards that are committed so far, so a run in progress has fewer rows; a
    dataset that has not begun is an empty table.

    Methods whose names end with `_batches` yield the same rows in smaller tables and hold one table in memory at a
    time. Use these methods for runs that do not fit into memory.

    All methods raise OSError if a file of the run cannot be read, and ValueError if a file has unexpected columns.
    """

    def __init__(self, run: Run) -> None:
        """Raises ConfigError if the directory holds no run."""
        self._run = run
        self.students: list[str] = student_names(run)
        """The names of the students, including those of later rounds that have begun."""
        self._models = models_by_benchmark(run)

    def __repr__(self) -> str:
        return f"RunView({self.path!r})"

    @property
    def path(self) -> str:
        """The run directory: an absolute path, or an `s3://` URI."""
        return self._run.storage.root

    @property
    def benchmarks(self) -> list[str]:
        """The names of the benchmarks."""
        return list(self._models)

    @property
    def models(self) -> list[str]:
        """The names of the models that the benchmarks measure, such as `small.before`, `small.after` and `teacher`."""
        return list(dict.fromkeys(model for models in self._models.values() for model in models))

    @cached_property
    def config(self) -> EvaluationRunConfig:
        """The settings of the run's latest command; a `RunConfig` if the run aligns students.

        Raises:
            ConfigError: another version wrote settings that this version does not have.
        """
        return read_config(self._run)

    def annotations(self) -> pa.Table:
        """D_PA: each pair that the teacher wrote, or why an image has none; the columns are those of `Annotation`."""
        return _table(self._run.annotations)

    def annotation_batches(self) -> Iterator[pa.Table]:
        """The rows of `annotations`, in one table for each shard."""
        return _tables(self._run.annotations)

    def verdicts(self, student: str) -> pa.Table:
        """The verdicts on all annotations for this student; the columns are those of `Verdict`.

        Raises:
            ConfigError: the run has no such student.
        """
        return _table(self._verdicts(student))

    def verdict_batches(self, student: str) -> Iterator[pa.Table]:
        """The rows of `verdicts`, in one table for each shard."""
        return _tables(self._verdicts(student))

    def parity(self, student: str) -> pa.Table:
        """D_PI of a student: the pairs with the verdict `kept`; the columns are those of `ParitySample`.

        The table is empty until the student's identification is done.

        Raises:
            ConfigError: the run has no such student.
        """
        return _concatenated(list(self.parity_batches(student)), ParitySample)

    def parity_batches(self, student: str) -> Iterator[pa.Table]:
        """The rows of `parity`, in tables of up to 10,000 rows. The compressed file is also held in memory."""
        self._check("student", student, self.students)
        return parity_tables(self._run, student) if self._run.is_identified(student) else iter(())

    def predictions(self, benchmark: str, model: str) -> pa.Table:
        """A model's answers to a benchmark, one row for each question; the columns are those of `Prediction`.

        Args:
            benchmark: One of `benchmarks`.
            model: One of `models`.

        Raises:
            ConfigError: the run has no such benchmark or model.
        """
        return _table(self._predictions(benchmark, model))

    def prediction_batches(self, benchmark: str, model: str) -> Iterator[pa.Table]:
        """The rows of `predictions`, in one table for each shard."""
        return _tables(self._predictions(benchmark, model))

    def scores(self) -> dict[str, BenchmarkScores]:
        """The scores of all models by benchmark, in [0, 1]; empty until the predictions are scored."""
        return read_scores(self._run)

    def report(self) -> EvaluationSummary:
        """The figures of the report, computed from the files: a `ReportSummary` if the run aligns students.

        Reads all rows of the run.

        Raises:
            ConfigError: another version wrote settings that this version does not have.
        """
        return collect(self._run, self.config)

    def status(self, count_rows: bool = False) -> Status:
        """The progress of each phase.

        Args:
            count_rows: Also read two columns of every shard, to count rows by outcome.
        """
        return status(self._run, count_rows)

    def _verdicts(self, student: str) -> ShardedDataset[Any]:
        self._check("student", student, self.students)
        return self._run.verdicts(student)

    def _predictions(self, benchmark: str, model: str) -> ShardedDataset[Any]:
        self._check("benchmark", benchmark, self.benchmarks)
        self._check("model", model, self._models[benchmark])
        return self._run.predictions(benchmark, model)

    def _check(self, field: str, name: str, known: Sequence[str]) -> None:
        if name not in known:
            choices = f"Choose one of {', '.join(known)}." if known else f"The run has no {field}."
            remedy = f"{did_you_mean(name, known)} {choices}".lstrip()
            raise ConfigError(field, name, f"is not a {field} of {self.path}.", remedy)


def _tables(dataset: ShardedDataset[Any]) -> Iterator[pa.Table]:
    return (dataset.table(shard) for shard in dataset.committed())


def _table(dataset: ShardedDataset[Any]) -> pa.Table:
    return _concatenated(list(prefetch(dataset.table, dataset.committed())), dataset.row_type)


def _concatenated(tables: list[pa.Table], row_type: type[Any]) -> pa.Table:
    import pyarrow as pa

    return pa.concat_tables(tables or [to_table([], row_type)])
