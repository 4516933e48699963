"""Reads the shards of a dataset whole, and finds damaged and missing markers and files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from mpa_ray.errors import DamagedFile, may_pass
from mpa_ray.observability.progress import Progress
from mpa_ray.run.damage import RESTORE, SAME_COMMAND, Finding, withdraw
from mpa_ray.run.dataset import ShardedDataset
from mpa_ray.run.marker import Commit
from mpa_ray.run.prefetch import prefetch

_WITHDRAWN = "a repair has withdrawn its damaged rows, and they have not been made again"


@dataclass(frozen=True)
class DatasetAudit:
    """A dataset, and what a repair of its shards takes."""

    dataset: ShardedDataset[Any]
    shards: Sequence[str]
    """The shards that the dataset should have, or those that it has."""
    dependents: Sequence[ShardedDataset[Any]] = ()
    """Datasets whose rows are made from those of this dataset."""
    has_exports: bool = False
    """Whether other files were made from all rows of the dataset."""
    repairs: tuple[Callable[[], None], ...] = ()
    """What a repair does in addition, once a shard is withdrawn."""
    remedy: str = ""
    """What a person must do; empty if a repair suffices."""

    def findings(self, progress: Progress) -> Iterator[Finding]:
        """Yield the damaged and missing files of all shards."""
        listed = self.dataset.markers.generations()
        names = [*self.shards, *sorted(listed.keys() - set(self.shards))]
        for findings in prefetch(partial(self._of_shard, listed), names):
            progress.advance(1)
            yield from findings

    def _of_shard(self, listed: dict[str, int], shard: str) -> list[Finding]:
        markers = self.dataset.markers
        newest = markers.newest_or_damage(shard)
        generation = markers.next_generation(shard) - 1
        expected = max([listed.get(shard, 0), *self._used_generations(shard)], default=0)
        if generation < expected or newest is None:
            # A marker of an unfinished dataset is not missing: the shard is not committed yet.
            is_missing = expected > 0 or self.has_exports or any(self._used_generations(shard))
            is_missing = is_missing or any(other.markers.has_marker(shard) for other in self.dependents)
            missing = self._finding(markers.path(shard, generation + 1), "the marker is missing", shard, expected)
            return [missing] if is_missing else []
        if isinstance(newest, DamagedFile):
            return [self._finding(newest.path, newest.problem, shard)]
        if newest.is_withdrawn:
            return [Finding(markers.path(shard, generation), _WITHDRAWN, "run the same command: it makes them again")]
        return list(self._of_file(newest))

    def _used_generations(self, shard: str) -> list[int]:
        """The generations from which rows of the dependents were made."""
        commits = [other.markers.newest_or_damage(shard) for other in self.dependents]
        return [commit.source_generation for commit in commits if isinstance(commit, Commit)]

    def _of_file(self, commit: Commit) -> Iterator[Finding]:
        try:
            self.dataset.table_of(commit)
        except DamagedFile as damage:
            yield self._finding(commit.file, damage.problem, commit.shard)
        except (OSError, ValueError, KeyError) as error:
            if may_pass(error):
                raise
            yield self._finding(commit.file, f"it cannot be read: {error}", commit.shard)

    def _finding(self, path: str, problem: str, shard: str, expected: int = 0) -> Finding:
        if self.remedy:
            return Finding(path, problem, f"{RESTORE}, or {self.remedy}")
        repair = withdraw(self.dataset, shard, expected)
        return Finding(path, problem, SAME_COMMAND, (repair, *self.repairs))
