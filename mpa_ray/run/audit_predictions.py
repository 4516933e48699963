"""Recounts the answers to benchmarks: a model that has begun a benchmark must answer every question exactly once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from mpa_ray.errors import ConfigError
from mpa_ray.records import Outcome
from mpa_ray.run.dataset import ShardedDataset
from mpa_ray.run.prefetch import prefetch
from mpa_ray.run.recorded_config import models_by_benchmark
from mpa_ray.run.run import Run

_NUM_NAMES_SHOWN = 5

T = TypeVar("T")


@dataclass(frozen=True)
class _QuestionId:
    question_id: str


@dataclass(frozen=True)
class _AnswerOutcome(Outcome):
    question_id: str


@dataclass(frozen=True)
class AnswerCounts:
    """The outcomes of one model's answers to a benchmark."""

    num_questions: int
    outcomes: dict[str, int]
    """Numbers of rows by reason; rows without a reason count as `kept`."""


@dataclass(frozen=True)
class PredictionAudit:
    """The counts by benchmark and model, and one sentence for each problem."""

    counts: dict[str, dict[str, AnswerCounts]]
    problems: list[str]


def audit_predictions(run: Run, include_missing: bool) -> PredictionAudit:
    """Compare all answers of a run with the benchmarks' questions.

    Args:
        run: The run.
        include_missing: Whether a benchmark or a model without any answer is also a problem.

    Raises:
        ConfigError: the directory holds no run.
    """
    counts: dict[str, dict[str, AnswerCounts]] = {}
    problems: list[str] = []
    for benchmark, models in models_by_benchmark(run).items():
        folder = run.benchmark_dir(benchmark)
        if not run.has_manifest(folder):
            problems += [f"{folder}: the questions have not been read yet"] if include_missing else []
            continue
        try:
            shards = run.manifest(folder).shards
        except ConfigError as error:
            problems.append(f"{folder}: the manifest cannot be read ({error})")
            continue
        questions = _rows(run.questions(benchmark), _QuestionId, shards, problems)
        expected = {
            shard: [row.question_id for row in rows]
            for shard, rows in zip(shards, questions, strict=True)
            if rows is not None
        }
        for model in models:
            predictions = run.predictions(benchmark, model)
            if include_missing or any(run.storage.list(f"{predictions.folder}/commits")):
                counts.setdefault(benchmark, {})[model] = _counted(predictions, shards, expected, problems)
    return PredictionAudit(counts, problems)


def _counted(
    predictions: ShardedDataset[Any], shards: list[str], expected: dict[str, list[str]], problems: list[str]
) -> AnswerCounts:
    outcomes: Counter[str] = Counter()
    rows_of_shards = _rows(predictions, _AnswerOutcome, shards, problems)
    for shard, rows in zip(shards, rows_of_shards, strict=True):
        if rows is None:
            continue
        outcomes.update(row.reason or row.state for row in rows)
        ids, questions = Counter(row.question_id for row in rows), Counter(expected.get(shard, []))
        subject = f"{predictions.folder} shard {shard}: questions"
        problems += [f"{subject} missing: {_names(missing)}"] if (missing := questions - ids) else []
        problems += [f"{subject} unexpected: {_names(extra)}"] if (extra := ids - questions) else []
    return AnswerCounts(sum(map(len, expected.values())), dict(outcomes.most_common()))


def _rows(
    dataset: ShardedDataset[Any], columns: type[T], shards: list[str], problems: list[str]
) -> Iterator[list[T] | None]:
    """Yield some columns of each shard. A shard that is missing or cannot be read is a problem and yields None."""

    def rows(shard: str) -> list[T] | str:
        if not dataset.markers.has_marker(shard):
            return f"{dataset.folder}: shard {shard} is missing"
        try:
            return dataset.columns(shard, columns)
        except FileNotFoundError:
            return f"{dataset.folder}: shard {shard} is missing"
        except (ValueError, KeyError) as error:
            return f"{dataset.folder}: shard {shard} cannot be read ({error})"

    for result in prefetch(rows, shards):
        if isinstance(result, str):
            problems.append(result)
        yield None if isinstance(result, str) else result


def _names(ids: Counter[str]) -> str:
    shown = ", ".join(list(ids)[:_NUM_NAMES_SHOWN])
    return f"{shown} and {len(ids) - _NUM_NAMES_SHOWN} more" if len(ids) > _NUM_NAMES_SHOWN else shown
