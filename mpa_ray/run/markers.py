"""The markers of a dataset's shards, in generations.

A marker is created only if it does not exist, and none is ever changed or deleted. Readers try the markers of a shard
one generation after the other and follow the newest. A marker can also withdraw the rows of the generations before it:
the shard then has no rows, and the next command that makes such rows makes them again, as the next generation.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import count, takewhile

from mpa_ray.errors import DamagedFile
from mpa_ray.run.marker import Commit
from mpa_ray.run.prefetch import prefetch
from mpa_ray.storage.storage import Storage

_COMMITS = "commits"
GENERATIONS = "generations"
"""The folder of the markers of later generations. It is usually empty, so listing it takes one request."""
UNREAD = "unread"
MARKER_FOLDERS = (_COMMITS, GENERATIONS, UNREAD)
"""The folders of a dataset whose files are created only if they do not exist, and are never deleted."""
_MARKER = re.compile(r"(\d+)\.json")
_LATER_MARKER = re.compile(r"(\d+)\.(\d+)\.json")


def shard_name(index: int) -> str:
    """The name of the shard at a position: six digits, so that names sort by position."""
    return f"{index:06d}"


@dataclass(frozen=True)
class Markers:
    """The markers in one dataset's folder."""

    storage: Storage
    folder: str

    def create(self, commit: Commit) -> bool:
        """Publish a generation of a shard. Returns False if it is published already."""
        return self._create(replace(commit, same_rows_since=self._same_rows_since(commit)))

    def withdraw(self, shard: str, last: int = 0) -> None:
        """Write a marker that declares the newest rows of a shard unusable, so that the shard is made again.

        Some of the shard's markers may be missing or damaged.

        Args:
            shard: The shard.
            last: A generation that existed, even if its marker is missing now.
        """
        newest = self.newest_or_damage(shard)
        last = max(last, self.generations().get(shard, 0), self.next_generation(shard) - 1)
        missing = Commit(shard, "", 0)
        for generation in range(last + 1):
            # Readers find the newest marker by trying one generation after the other.
            if not self.storage.exists(self.path(shard, generation)):
                self._create(missing.withdrawn(generation))
        current = self.newest_or_damage(shard)
        rows = current if isinstance(current, Commit) else missing
        if rows.is_withdrawn and last > 0:
            return
        if isinstance(current, Commit) and not rows.is_withdrawn and current != newest:
            # Readers could not reach these rows before.
            return
        # Withdrawn shards are found in the listing of later generations, so the marker needs a later generation.
        self._create(rows.withdrawn(last + 1))

    def _create(self, commit: Commit) -> bool:
        return self.storage.create(self.path(commit.shard, commit.generation), commit.to_json())

    def _same_rows_since(self, commit: Commit) -> int | None:
        """The oldest generation with these rows, if the generation before was withdrawn and had the same rows."""
        before = self.marker_or_damage(commit.shard, commit.generation - 1) if commit.generation else None
        is_same = isinstance(before, Commit) and before.is_withdrawn and before.sha256 == commit.sha256
        return before.rows_since if isinstance(before, Commit) and is_same else None

    def commit_of(self, shard: str) -> Commit | None:
        """Return the newest marker of a shard, or None if the shard is not committed or was withdrawn.

        Raises:
            DamagedFile: the newest marker is damaged.
        """
        newest = self.newest(shard)
        return None if newest is None or newest.is_withdrawn else newest

    def newest(self, shard: str) -> Commit | None:
        """Return the newest marker of a shard, which may withdraw the shard's rows. Raises as `commit_of` does."""
        newest = self.newest_or_damage(shard)
        if isinstance(newest, DamagedFile):
            raise newest
        return newest

    def newest_or_damage(self, shard: str) -> Commit | DamagedFile | None:
        """Return the newest marker of a shard, or how it is damaged; None if the shard has no marker."""
        return next(reversed(self.all_of(shard)), None)

    def next_generation(self, shard: str) -> int:
        """Return the number of the shard's markers, damaged or not."""
        return len(self.all_of(shard))

    def history(self, shard: str) -> list[Commit]:
        """Return the markers of all generations of a shard, the newest last, without damaged ones."""
        return [marker for marker in self.all_of(shard) if isinstance(marker, Commit)]

    def all_of(self, shard: str) -> list[Commit | DamagedFile]:
        """Return the markers of all generations of a shard, the newest last; a DamagedFile for each damaged one."""
        markers = map(partial(self.marker_or_damage, shard), count())
        return [marker for marker in takewhile(lambda marker: marker is not None, markers) if marker is not None]

    def marker_or_damage(self, shard: str, generation: int) -> Commit | DamagedFile | None:
        """Return the marker of one generation of a shard, or how it is damaged; None if there is none."""
        try:
            return self.generation_of(shard, generation)
        except DamagedFile as damage:
            return damage

    def generation_of(self, shard: str, generation: int) -> Commit | None:
        """Return the marker of one generation of a shard, or None if there is none. Raises DamagedFile."""
        path = self.path(shard, generation)
        try:
            commit = Commit.from_json(self.storage.read(path), path)
        except FileNotFoundError:
            return None
        if (commit.shard, commit.generation) != (shard, generation):
            raise DamagedFile(path, f"it is the marker of shard {commit.shard}, generation {commit.generation}")
        return commit

    def generations(self) -> dict[str, int]:
        """Return the newest generation of each shard that was redone. Lists only the markers of such shards."""
        newest: dict[str, int] = {}
        for path in self.storage.list(f"{self.folder}/{GENERATIONS}"):
            if (name := _LATER_MARKER.fullmatch(path.rpartition("/")[2])) is not None:
                newest[name[1]] = max(newest.get(name[1], 0), int(name[2]))
        return newest

    def listed(self) -> list[str]:
        """Return all shards with a marker of generation 0, in order. Lists the markers."""
        names = (_MARKER.fullmatch(path.rpartition("/")[2]) for path in self.storage.list(f"{self.folder}/{_COMMITS}"))
        return sorted((name[1] for name in names if name is not None), key=int)

    def committed(self) -> list[str]:
        """Return all shards that are committed and not withdrawn, in order. Lists the markers."""
        withdrawn = self.withdrawn()
        return [shard for shard in self.listed() if shard not in withdrawn]

    def withdrawn(self) -> set[str]:
        """Return the shards whose newest marker withdraws their rows. Reads only shards that have several markers."""
        return {shard for shard, marker in self._made_again() if isinstance(marker, Commit) and marker.is_withdrawn}

    def version(self) -> str:
        """Return a hash of the generations of all shards; empty if no shard was redone with other rows."""
        versions = {shard: _version_of(marker) for shard, marker in self._made_again()}
        newest = sorted((shard, version) for shard, version in versions.items() if version)
        return hashlib.sha256(json.dumps(newest).encode()).hexdigest()[:16] if newest else ""

    def _made_again(self) -> Iterator[tuple[str, Commit | DamagedFile | None]]:
        """The newest markers of the shards that have several."""
        shards = list(self.generations())
        return zip(shards, prefetch(self.newest_or_damage, shards), strict=True)

    def has_marker(self, shard: str) -> bool:
        """Whether the shard was ever committed. Its rows may have been withdrawn since."""
        return self.storage.exists(self.path(shard))

    def without_marker(self, shards: Iterable[str]) -> list[str]:
        """Return the shards that were never committed, in the given order."""
        names = list(shards)
        have_markers = prefetch(self.has_marker, names)
        return [name for name, has_marker in zip(names, have_markers, strict=True) if not has_marker]

    def missing(self, shards: Iterable[str]) -> list[str]:
        """Return the shards that are not committed or were withdrawn, in the given order."""
        names = list(shards)
        missing = self.withdrawn().union(self.without_marker(names))
        return [name for name in names if name in missing]

    def leading(self) -> list[str]:
        """Return the committed shards before the first shard that is not committed."""
        have_markers = takewhile(bool, prefetch(self.has_marker, map(shard_name, count())))
        names = [shard_name(index) for index, _ in enumerate(have_markers)]
        withdrawn = self.withdrawn()
        return list(takewhile(lambda name: name not in withdrawn, names))

    def path(self, shard: str, generation: int = 0) -> str:
        """The path of the marker of one generation of a shard."""
        if generation == 0:
            return f"{self.folder}/{_COMMITS}/{shard}.json"
        return f"{self.folder}/{GENERATIONS}/{shard}.{generation}.json"


def _version_of(newest: Commit | DamagedFile | None) -> int | str:
    """Identifies the rows of a shard; 0 for those of generation 0."""
    if not isinstance(newest, Commit):
        return "damaged"
    return f"withdrawn {newest.generation}" if newest.is_withdrawn else newest.rows_since
