"""Removes files that dead or slower attempts have left behind: files that no marker names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, cast

from mpa_ray.run.dataset import MARKER_FOLDERS, SUSPECTS, Commit, ShardedDataset, prefetch
from mpa_ray.run.recorded_config import models_by_benchmark, student_names
from mpa_ray.run.run import Manifest, Run
from mpa_ray.storage.storage import PROBES


@dataclass(frozen=True)
class Collected:
    """How much was removed."""

    num_files: int
    num_bytes: int
    num_uploads: int
    """Unfinished uploads to an object store."""


def collect_garbage(run: Run, older_than: timedelta) -> Collected:
    """Remove files that are older than `older_than` and belong to no generation of a committed shard.

    Files about images that may kill engines are kept for shards that are not committed.

    A running attempt writes its file before its marker, so `older_than` must be longer than any attempt takes.
    """
    before = datetime.now(UTC) - older_than
    num_files = num_bytes = 0
    for dataset, manifest in _datasets(run):
        commits = [commit for history in prefetch(dataset.history, manifest.shards) for commit in history]
        for name in ("data", SUSPECTS, *MARKER_FOLDERS):
            is_kept = _rule(name, commits)
            for file in list(run.storage.details(f"{dataset.folder}/{name}")):
                if not is_kept(file.path) and file.modified < before:
                    run.storage.delete(file.path)
                    num_files, num_bytes = num_files + 1, num_bytes + file.num_bytes
    for file in list(run.storage.details(PROBES)):
        if file.modified < before:
            run.storage.delete(file.path)
            num_files, num_bytes = num_files + 1, num_bytes + file.num_bytes
    return Collected(num_files, num_bytes, run.storage.drop_unfinished(before))


def _rule(name: str, commits: Sequence[Commit]) -> Callable[[str], bool]:
    """Return a function that decides which files in this folder of a dataset are kept. Hidden files are unfinished."""
    if name == "data":
        committed = {commit.file for commit in commits}
        return lambda path: path in committed
    done = {(commit.shard, str(commit.generation)) for commit in commits} if name == SUSPECTS else set()

    def is_kept(path: str) -> bool:
        file = path.rpartition("/")[2]
        return not file.startswith(".") and tuple(file.split(".")[:2]) not in done

    return is_kept


def _datasets(run: Run) -> Iterator[tuple[ShardedDataset[Any], Manifest]]:
    students = student_names(run)
    if students or run.is_indexed():
        corpus = run.manifest()
        for dataset in (run.corpus, run.annotations, *map(run.verdicts, students)):
            yield cast(ShardedDataset[Any], dataset), corpus
    for benchmark, models in models_by_benchmark(run).items():
        folder = run.benchmark_dir(benchmark)
        if run.has_manifest(folder):
            predictions = (run.predictions(benchmark, model) for model in models)
            for dataset in (run.questions(benchmark), *predictions):
                yield cast(ShardedDataset[Any], dataset), run.manifest(folder)
