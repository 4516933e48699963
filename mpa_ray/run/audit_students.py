"""Reads the files of trained students: their training data, their weights, and the records of their training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from mpa_ray.config import Arm
from mpa_ray.observability.progress import Progress
from mpa_ray.records import EpochCounts, LabelledQuestion, ParitySample, Prediction
from mpa_ray.run.audit_json import UNREADABLE, json_finding
from mpa_ray.run.audit_shards import DatasetAudit
from mpa_ray.run.checkpoint_files import PROGRESS, checkpoints_name, complete_checkpoints, damaged_in_checkpoint
from mpa_ray.run.checksums import damaged_files
from mpa_ray.run.damage import RESTORE, Finding, set_aside
from mpa_ray.run.dataset import ShardedDataset
from mpa_ray.run.export_check import ExportCheck
from mpa_ray.run.marker import Commit
from mpa_ray.run.markers import shard_name
from mpa_ray.run.ownership import Owner, owner_files, write_unknown_owner
from mpa_ray.run.run import EXPORT, Run
from mpa_ray.run.training_log import FILE_ENTRIES, parse_log_file, write_lost_file
from mpa_ray.run.training_state import TrainingState

_TRAIN_AGAIN = "train the student again: delete its folder, or give --relevel if D_PI was made again"


def student_findings(run: Run, arms: Mapping[str, Sequence[Arm]], progress: Progress) -> Iterator[Finding]:
    """Yield the damaged and missing files of all trainings."""
    for student, names in arms.items():
        for arm in names:
            folders = run.training_dirs(student, arm)
            for folder in folders:
                is_newest = folder == folders[-1]
                is_outdated = not is_newest or _version_of(run, folder) != run.verdicts(student).version()
                yield from _Training(run, folder, is_newest, is_outdated).findings(progress)


def _version_of(run: Run, folder: str) -> str:
    """The version of the verdicts from which the training was planned; "" if it cannot be read."""
    try:
        return run.version_in(folder)
    except UNREADABLE:
        return ""


def _missing(dataset: ShardedDataset[Any], num_rows: int) -> list[str]:
    """The shards without a marker, inferred from the other shards and from the number of rows of all shards."""
    listed = dataset.markers.listed()
    names = [shard_name(index) for index in range(int(listed[-1]) + 1 if listed else 0)]
    newest = list(map(dataset.markers.newest_or_damage, listed))
    commits = [marker for marker in newest if isinstance(marker, Commit)]
    has_later = len(commits) == len(newest) == len(names) and sum(marker.num_rows for marker in commits) < num_rows
    return [*sorted(set(names).difference(listed)), *([shard_name(len(names))] if has_later else [])]


class _Training:
    """The files of one training."""

    def __init__(self, run: Run, folder: str, is_newest: bool, is_outdated: bool) -> None:
        self._run, self._folder = run, folder
        self._is_newest, self._is_outdated = is_newest, is_outdated
        self._is_complete = run.storage.exists(self._path("complete.json"))

    def findings(self, progress: Progress) -> Iterator[Finding]:
        yield from self._records()
        yield from self._plan(progress)
        yield from self._checkpoints(progress)
        yield from self._export(progress)
        yield from self._check(progress)

    def _path(self, name: str) -> str:
        return f"{self._folder}/{name}"

    def _aside(self, *names: str) -> Callable[[], None]:
        """A repair after which the same command finishes the training again."""
        return set_aside(self._run, *map(self._path, (*names, "complete.json")))

    def _export_again(self, *names: str) -> Callable[[], None]:
        """A repair after which the same command exports the student and checks the export."""

        def repair() -> None:
            self._aside(*names, "merged/config.json")()
            for dataset in self._check_datasets():
                for shard in dataset.markers.listed():
                    dataset.markers.withdraw(shard)

        return repair

    def _check_datasets(self) -> list[ShardedDataset[Any]]:
        """The questions and answers of the check of the export."""
        return [
            self._run.dataset(self._path("check/questions"), LabelledQuestion),
            self._run.dataset(self._path("check/answers"), Prediction),
        ]

    def _remedy(self, *, needs_same_data: bool = False) -> str | None:
        """What a person must do; None if a repair suffices."""
        can_repair = self._is_newest and not (needs_same_data and self._is_outdated)
        return None if can_repair else f"{RESTORE}, or {_TRAIN_AGAIN}"

    def _json(self, name: str, remedy: str | None, repair: Callable[[], None], **settings: Any) -> Iterator[Finding]:
        repairs = (repair,) if remedy is None else ()
        settings = {"is_required": self._is_complete, **settings}
        yield from json_finding(self._run, self._path(name), remedy, *repairs, **settings)

    def _records(self) -> Iterator[Finding]:
        run, remedy = self._run, self._remedy()
        # Without its state, the training continues from its last checkpoint.
        yield from self._json("training.json", remedy, self._export_again("training.json"), read=self._read_state)
        # The version is recorded when the samples are planned.
        needed, repair = self._remedy(needs_same_data=True), self._aside("verdicts.json", "epoch/manifest.json")
        yield from self._json("verdicts.json", needed, repair, is_required=self._had_checksums())
        # Without this file, the same command finishes the training again.
        yield from self._json("complete.json", remedy, self._aside(), is_required=False)
        for path in sorted({*run.storage.list(self._path("log")), *self._log_files()}):
            lost = f"{RESTORE}, or run mpa-ray audit RUN --repair: a part of the training's curves is lost"
            repairs = set_aside(run, path), partial(write_lost_file, run, path)
            yield from json_finding(run, path, lost, *repairs, read=self._read_log, is_required=True)

        for path in owner_files(run.storage, self._folder):
            unknown = "run mpa-ray audit RUN --repair: it is no longer known which command trained the student"
            repairs = set_aside(run, path), partial(write_unknown_owner, run.storage, path)
            yield from json_finding(run, path, unknown, *repairs, read=self._read_owner, is_required=True)

    def _read_owner(self, path: str) -> Owner:
        return Owner.from_json(self._run.storage.read(path))

    def _read_state(self, path: str) -> TrainingState:
        state = TrainingState.read(self._run, self._folder)
        if state is None:
            raise FileNotFoundError(path)
        return state

    def _log_files(self) -> list[str]:
        """The files of the log that the state of the training names."""
        try:
            state = self._read_state(self._path("training.json"))
        except UNREADABLE:
            return []
        return [path for files in state.log_files for path in files.paths(self._folder)]

    def _read_log(self, path: str) -> None:
        num_entries = len(parse_log_file(self._run.storage.read(path)))
        if num_entries not in (0, FILE_ENTRIES):
            raise ValueError(f"it has {num_entries} lines instead of {FILE_ENTRIES}")

    def _plan(self, progress: Progress) -> Iterator[Finding]:
        run = self._run
        manifest = "epoch/manifest.json"
        # The same command plans the same samples again, as long as D_PI is the same.
        remedy, repair = self._remedy(needs_same_data=True), self._aside(manifest)
        read_counts = lambda path: EpochCounts(**run.read_json(path))  # noqa: E731
        yield from self._json(manifest, remedy, repair, read=read_counts)
        counts = self._counts(manifest)
        for name in ("epoch", "held_out", "retained"):
            dataset = run.dataset(self._path(name), ParitySample)
            shards = dataset.markers.listed()
            # The manifest is written after all rows.
            is_whole = counts is not None
            if counts is not None and name == "epoch":
                shards += _missing(dataset, counts.num_samples)
            elif is_whole and not shards:
                shards = [shard_name(0)]
            audit = DatasetAudit(dataset, shards, has_exports=is_whole, repairs=(repair,), remedy=remedy or "")
            yield from audit.findings(progress)

    def _counts(self, manifest: str) -> EpochCounts | None:
        try:
            return EpochCounts(**self._run.read_json(self._path(manifest)))
        except UNREADABLE:
            return None

    def _export(self, progress: Progress) -> Iterator[Finding]:
        run, remedy = self._run, self._remedy()
        # Without the configuration of the merged model, the same command exports the trained weights again.
        repair = self._export_again(EXPORT)
        damaged = list(self._json(EXPORT, remedy, repair, is_required=self._had_checksums()))
        yield from damaged
        if damaged:
            return
        progress.advance(1)
        repairs = (repair,) if remedy is None else ()
        shown = {} if remedy is None else {"remedy": remedy}
        if run.storage.exists(self._path(EXPORT)):
            for damage in damaged_files(run.storage, self._folder, run.read_json(self._path(EXPORT))):
                yield Finding(damage.path, damage.problem, repairs=repairs, **shown)

    def _had_checksums(self) -> bool:
        try:
            return bool(self._run.read_json(self._path("complete.json")).get("has_checksums"))
        except UNREADABLE:
            return False

    def _checkpoints(self, progress: Progress) -> Iterator[Finding]:
        run = self._run
        remedy = "run mpa-ray audit RUN --repair: a training that is not finished then begins at an earlier checkpoint"
        for owner in range(1, len(owner_files(run.storage, self._folder)) + 1):
            for folder in complete_checkpoints(run.storage, self._path(checkpoints_name(owner))):
                progress.advance(1)
                for damage in damaged_in_checkpoint(run.storage, folder):
                    yield Finding(damage.path, damage.problem, remedy, (set_aside(run, f"{folder}/{PROGRESS}"),))

    def _check(self, progress: Progress) -> Iterator[Finding]:
        run, remedy = self._run, self._remedy()
        repair = self._export_again("check.json")
        read_check = lambda _: ExportCheck.read(run, self._folder)  # noqa: E731
        yield from self._json("check.json", remedy, repair, read=read_check)
        datasets = self._check_datasets()
        # Once the check is done, both datasets have the same shards.
        shards = sorted({shard for dataset in datasets for shard in dataset.markers.listed()})
        for dataset in datasets:
            repairs = (self._aside(),)
            audit = DatasetAudit(dataset, shards, has_exports=self._is_complete, repairs=repairs, remedy=remedy or "")
            yield from audit.findings(progress)
