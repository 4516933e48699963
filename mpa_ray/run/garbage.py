"""Removes files that dead or slower attempts have left behind: files that no marker names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, cast

from mpa_ray.errors import DamagedFile
from mpa_ray.records import LabelledQuestion, ParitySample, Prediction
from mpa_ray.run.commands import COMMANDS
from mpa_ray.run.dataset import SUSPECTS, ShardedDataset
from mpa_ray.run.marker import Commit
from mpa_ray.run.markers import MARKER_FOLDERS
from mpa_ray.run.prefetch import prefetch
from mpa_ray.run.recorded_config import arms_by_student, models_by_benchmark, student_names
from mpa_ray.run.run import Run
from mpa_ray.storage.storage import PROBES, StoredFile

_OF_TRAINING = {
    "epoch": ParitySample,
    "held_out": ParitySample,
    "retained": ParitySample,
    "check/questions": LabelledQuestion,
    "check/answers": Prediction,
}
"""The datasets in the folder of a training, with the types of their rows."""


@dataclass(frozen=True)
class Collected:
    """How much was removed."""

    num_files: int
    num_bytes: int
    num_uploads: int
    """Unfinished uploads to an object store, and unfinished files in other folders than those of datasets."""


def collect_garbage(run: Run, older_than: timedelta) -> Collected:
    """Remove files that are older than `older_than` and belong to no generation of a committed shard.

    This includes files in `commands/`, which commands that were killed on other machines leave behind; until then,
    `status` shows such commands as running. Files about images that may kill engines are kept for shards that are not
    committed.

    A running attempt writes its file before its marker, so `older_than` must be longer than any attempt takes.
    """
    before = datetime.now(UTC) - older_than
    removed = [file for dataset, shards in _datasets(run) for file in _left_behind(run, dataset, shards)]
    others = (file for folder in (PROBES, COMMANDS) for file in run.storage.details(folder))
    removed = [file for file in (*removed, *others) if file.modified < before]
    for file in removed:
        run.storage.delete(file.path)
    return Collected(len(removed), sum(file.num_bytes for file in removed), run.storage.drop_unfinished(before))


def _left_behind(run: Run, dataset: ShardedDataset[Any], shards: Sequence[str]) -> Iterator[StoredFile]:
    markers = [marker for of_shard in prefetch(dataset.markers.all_of, shards) for marker in of_shard]
    commits = [marker for marker in markers if isinstance(marker, Commit)]
    # It is not known which files these markers name.
    damaged = tuple(f"{dataset.folder}/data/{_shard_of(m.path)}-" for m in markers if isinstance(m, DamagedFile))
    for name in ("data", SUSPECTS, *MARKER_FOLDERS):
        is_kept = _rule(name, commits)
        for file in run.storage.details(f"{dataset.folder}/{name}"):
            if not is_kept(file.path) and not (damaged and file.path.startswith(damaged)):
                yield file


def _shard_of(marker: str) -> str:
    return marker.rpartition("/")[2].partition(".")[0]


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


def _datasets(run: Run) -> Iterator[tuple[ShardedDataset[Any], list[str]]]:
    """The datasets of a run, with their shards."""
    students = student_names(run)
    if students or run.is_indexed():
        corpus = run.manifest().shards
        for dataset in (run.corpus, run.annotations, *map(run.verdicts, students)):
            yield cast(ShardedDataset[Any], dataset), corpus
    for benchmark, models in models_by_benchmark(run).items():
        folder = run.benchmark_dir(benchmark)
        if run.has_manifest(folder):
            predictions = (run.predictions(benchmark, model) for model in models)
            for dataset in (run.questions(benchmark), *predictions):
                yield cast(ShardedDataset[Any], dataset), run.manifest(folder).shards
    for student, arms in arms_by_student(run).items():
        for arm in arms:
            for folder in run.training_dirs(student, arm):
                for name, row_type in _OF_TRAINING.items():
                    dataset = run.dataset(f"{folder}/{name}", row_type)
                    yield dataset, dataset.markers.listed()
