"""A dataset in shards. Each shard is published by a marker: a small file that is created only if it does not exist.

An attempt first writes a shard's rows to a Parquet file whose name no other attempt uses, and then creates the marker,
which names the file. Readers follow only markers, so they never read the files of dead or slower attempts.

A shard that is made again gets a new generation: another marker beside the first, created in the same way. No marker is
ever changed or deleted, and readers follow the newest.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import count, islice, takewhile
from typing import Any, Generic, Protocol, TypeVar

import pyarrow as pa

from mpa_ray.errors import DamagedFile
from mpa_ray.records import RowT
from mpa_ray.run.marker import NO_VERSIONS, Commit
from mpa_ray.run.parquet_rows import from_parquet, read_columns, read_table, to_parquet
from mpa_ray.run.suspects import SuspectsFile
from mpa_ray.storage.storage import Storage

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
RowsT = TypeVar("RowsT", bound=Sized)

_NUM_THREADS = 16
_GENERATIONS = "generations"
"""The folder of the markers of later generations. It is usually empty, so listing it takes one request."""
_UNREAD = "unread"
MARKER_FOLDERS = ("commits", _GENERATIONS, _UNREAD)
"""The folders of a dataset whose files are created only if they do not exist, and are never deleted."""
SUSPECTS = "suspects"
"""The folder of what is known of images that may kill engines. Its files count until their shard is committed."""


def shard_name(index: int) -> str:
    """The name of the shard at a position: six digits, so that names sort by position."""
    return f"{index:06d}"


class ShardSource(Protocol[T_co]):
    """The dataset whose rows a pass reads."""

    def read_commit(self, shard: str) -> tuple[Commit, Sequence[T_co]]:
        """Return a shard's newest marker and its rows. Raises as `ShardedDataset.read` does."""
        ...


class ShardTarget(Protocol[T]):
    """The dataset to which a pass writes its rows."""

    def commit(
        self,
        shard: str,
        rows: Sequence[T],
        generation: int = 0,
        source_generation: int = 0,
        versions: Mapping[str, str] = NO_VERSIONS,
    ) -> bool:
        """Write and publish a shard. Returns False if another attempt was first; readers then get its rows."""
        ...

    def count_unread(self, shard: str, generation: int, command: str) -> int:
        """Record that a command could not read a shard's images, and return the number of such commands so far."""
        ...

    def suspects_file(self, shard: str, generation: int) -> SuspectsFile:
        """The file of what is known of the shard's images that may kill engines."""
        ...

    def list_suspects(self) -> set[str]:
        """The paths of all such files."""
        ...

    def read(self, shard: str) -> list[T]:
        """Return the rows of a committed shard. Raises as `ShardedDataset.read` does."""
        ...


@dataclass(frozen=True)
class ShardedDataset(Generic[RowT]):
    """Rows of one type in one folder of a run."""

    storage: Storage
    folder: str
    row_type: type[RowT]

    def commit(
        self,
        shard: str,
        rows: Sequence[RowT],
        generation: int = 0,
        source_generation: int = 0,
        versions: Mapping[str, str] = NO_VERSIONS,
        *,
        left_out: Mapping[str, int] | None = None,
    ) -> bool:
        """Write and publish a shard. Returns False if another attempt was first; readers then get its rows.

        Args:
            shard: The shard.
            rows: Its rows.
            generation: 0, or one more than the newest generation if the shard is made again.
            source_generation: The generation of the source's shard from which the rows were made.
            versions: See `Commit.versions`.
            left_out: See `Commit.left_out`.
        """
        file = f"{self.folder}/data/{shard}-{uuid.uuid4().hex}.parquet"
        content = to_parquet(rows, self.row_type)
        self.storage.write(file, content)
        commit = Commit(
            shard=shard,
            file=file,
            num_rows=len(rows),
            generation=generation,
            source_generation=source_generation,
            left_out=dict(left_out or {}),
            versions=dict(versions),
            num_bytes=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
        )
        return self._create_marker(replace(commit, same_rows_since=self._same_rows_since(commit)))

    def commit_missing(
        self, shard: str, rows: Sequence[RowT], *, left_out: Mapping[str, int] | None = None
    ) -> bool:
        """Commit a shard that has no rows, as the generation that is next. Returns False if the shard has rows."""
        newest = self.newest_marker(shard)
        if newest is not None and not newest.is_withdrawn:
            return False
        return self.commit(shard, rows, 0 if newest is None else newest.generation + 1, left_out=left_out)

    def withdraw(self, shard: str) -> None:
        """Write a marker that declares the newest rows of a shard unusable, so that the shard is made again.

        Some of the shard's markers may be missing or damaged.
        """
        self.fill_gaps(shard)
        last = max(self.next_generation(shard) - 1, 0)
        newest = self._marker_or_damage(shard, last)
        if isinstance(newest, Commit) and newest.is_withdrawn and last > 0:
            return
        rows = newest if isinstance(newest, Commit) else Commit(shard, "", 0)
        # Listing the later generations must show the shard, so generation 0 alone is never enough.
        for generation in range(last if newest is None else last + 1, last + 2):
            self._create_marker(rows.withdrawn(generation))

    def fill_gaps(self, shard: str) -> None:
        """Replace markers that are missing before the newest one by markers without rows.

        Readers find the newest marker by trying one generation after the other.
        """
        for generation in range(self.generations().get(shard, 0)):
            if not self.storage.exists(self.marker_path(shard, generation)):
                self._create_marker(Commit(shard, "", 0).withdrawn(generation))

    def _create_marker(self, commit: Commit) -> bool:
        return self.storage.create(self.marker_path(commit.shard, commit.generation), commit.to_json())

    def _same_rows_since(self, commit: Commit) -> int | None:
        """The oldest generation with these rows, if the generation before was withdrawn and had the same rows."""
        before = self._marker_or_damage(commit.shard, commit.generation - 1) if commit.generation else None
        is_same = isinstance(before, Commit) and before.is_withdrawn and before.sha256 == commit.sha256
        return before.rows_since if isinstance(before, Commit) and is_same else None

    def commit_of(self, shard: str) -> Commit | None:
        """Return the newest marker of a shard, or None if the shard is not committed or was withdrawn.

        Raises:
            DamagedFile: the newest marker is damaged.
        """
        newest = self.newest_marker(shard)
        return None if newest is None or newest.is_withdrawn else newest

    def newest_marker(self, shard: str) -> Commit | None:
        """Return the newest marker of a shard, which may withdraw the shard's rows. Raises as `commit_of` does."""
        newest = next(reversed(self._markers(shard)), None)
        if isinstance(newest, DamagedFile):
            raise newest
        return newest

    def next_generation(self, shard: str) -> int:
        """Return the number of the shard's markers, damaged or not."""
        return len(self._markers(shard))

    def history(self, shard: str) -> list[Commit]:
        """Return the markers of all generations of a shard, the newest last, without damaged ones."""
        return [marker for marker in self._markers(shard) if isinstance(marker, Commit)]

    def _markers(self, shard: str) -> list[Commit | DamagedFile]:
        markers = map(partial(self._marker_or_damage, shard), count())
        return [marker for marker in takewhile(lambda marker: marker is not None, markers) if marker is not None]

    def _marker_or_damage(self, shard: str, generation: int) -> Commit | DamagedFile | None:
        try:
            return self.generation_of(shard, generation)
        except DamagedFile as damage:
            return damage

    def generation_of(self, shard: str, generation: int) -> Commit | None:
        """Return the marker of one generation of a shard, or None if there is none. Raises DamagedFile."""
        path = self.marker_path(shard, generation)
        try:
            commit = Commit.from_json(self.storage.read(path), path)
        except FileNotFoundError:
            return None
        if (commit.shard, commit.generation) != (shard, generation):
            raise DamagedFile(path, f"it is the marker of shard {commit.shard}, generation {commit.generation}")
        return commit

    def generations(self) -> dict[str, int]:
        """Return the newest generation of each shard that was made again. Lists only the markers of such shards."""
        newest: dict[str, int] = {}
        for path in self.storage.list(f"{self.folder}/{_GENERATIONS}"):
            shard, _, generation = path.rpartition("/")[2].removesuffix(".json").partition(".")
            newest[shard] = max(newest.get(shard, 0), int(generation))
        return newest

    def withdrawn(self) -> set[str]:
        """Return the shards whose newest marker withdraws their rows. Reads only markers of shards made again."""
        shards = list(self.generations())
        newest = zip(shards, prefetch(self.newest_marker, shards), strict=True)
        return {shard for shard, marker in newest if marker is not None and marker.is_withdrawn}

    def version(self) -> str:
        """Return a hash of the generations of all shards; empty if no shard was made again with other rows."""
        shards = sorted(self.generations())
        commits = zip(shards, prefetch(self.newest_marker, shards), strict=True)
        generations = {shard: _version_of(commit) for shard, commit in commits if commit is not None}
        newest = sorted((shard, generation) for shard, generation in generations.items() if generation)
        return hashlib.sha256(json.dumps(newest).encode()).hexdigest()[:16] if newest else ""

    def count_unread(self, shard: str, generation: int, command: str) -> int:
        """Record that a command could not read a shard's images, and return the number of such commands so far.

        Args:
            shard: The shard.
            generation: The generation that the command tried to commit.
            command: Identifies the command. Each command counts once.
        """
        for number in count(1):
            path = f"{self.folder}/{_UNREAD}/{shard}.{generation}.{number}.json"
            content = json.dumps({"command": command}).encode()
            if self.storage.create(path, content) or self.storage.read(path) == content:
                return number
        raise AssertionError("counting does not end")

    def suspects_file(self, shard: str, generation: int) -> SuspectsFile:
        """The file of what is known of the images that may kill engines, while a generation of the shard is made."""
        return SuspectsFile(self.storage, f"{self.folder}/{SUSPECTS}/{shard}.{generation}.json")

    def list_suspects(self) -> set[str]:
        """The paths of all such files. The folder is usually empty."""
        return set(self.storage.list(f"{self.folder}/{SUSPECTS}"))

    def has_marker(self, shard: str) -> bool:
        """Whether the shard was ever committed. Its rows may have been withdrawn since."""
        return self.storage.exists(self.marker_path(shard))

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

    def num_rows(self, shards: Iterable[str]) -> int:
        """Return the number of rows in the committed shards among the given ones. Reads only markers."""
        return sum(commit.num_rows for commit in prefetch(self.commit_of, shards) if commit is not None)

    def read(self, shard: str) -> list[RowT]:
        """Return the rows of a committed shard.

        Raises:
            FileNotFoundError: the shard is not committed.
            DamagedFile: the newest marker or the file is damaged, or the file is missing.
            ValueError: the file has other columns.
        """
        return self.read_commit(shard)[1]

    def read_commit(self, shard: str) -> tuple[Commit, list[RowT]]:
        """Return a shard's newest marker and its rows. Raises as `read` does."""
        commit = self._committed(shard)
        return commit, self.rows_of(commit)

    def rows_of(self, commit: Commit) -> list[RowT]:
        """Return the rows that a marker of this dataset publishes. Raises as `read` does."""
        content = self.content_of(commit)
        with _decoding(commit):
            return _check_num_rows(from_parquet(content, self.row_type), commit)

    def content_of(self, commit: Commit) -> bytes:
        """Return the file that a marker publishes. Raises DamagedFile."""
        try:
            content = self.storage.read(commit.file)
        except FileNotFoundError as error:
            raise DamagedFile(commit.file, "it is missing") from error
        commit.check(content)
        return content

    def table(self, shard: str) -> pa.Table:
        """Return the rows of a committed shard as an Arrow table. Raises as `read` does."""
        commit = self._committed(shard)
        content = self.content_of(commit)
        with _decoding(commit):
            table = read_table(content, self.row_type)
        _check_num_rows(table, commit)
        return table

    def committed(self) -> list[str]:
        """Return all committed shards, in order. Lists the markers, so the corpus need not be complete."""
        markers = self.storage.list(f"{self.folder}/commits")
        return sorted((path.rpartition("/")[2].removesuffix(".json") for path in markers), key=int)

    def columns(self, shard: str, names: Sequence[str]) -> list[dict[str, Any]]:
        """Return some columns of a committed shard. Raises as `read` does, and KeyError for an unknown column."""
        commit = self._committed(shard)
        content = self.content_of(commit)
        with _decoding(commit):
            return _check_num_rows(read_columns(content, names), commit)

    def _committed(self, shard: str) -> Commit:
        commit = self.commit_of(shard)
        if commit is None:
            raise FileNotFoundError(f"{self.folder}: shard {shard} is not committed")
        return commit

    def rows(self, shards: Iterable[str]) -> Iterator[RowT]:
        """Yield the rows of the given shards, and skip shards that are not committed."""
        for rows in prefetch(self._rows_if_committed, shards):
            yield from rows

    def _rows_if_committed(self, shard: str) -> list[RowT]:
        commit = self.commit_of(shard)
        return [] if commit is None else self.rows_of(commit)

    def marker_path(self, shard: str, generation: int = 0) -> str:
        """The path of the marker of one generation of a shard."""
        if generation == 0:
            return f"{self.folder}/commits/{shard}.json"
        return f"{self.folder}/{_GENERATIONS}/{shard}.{generation}.json"


def _version_of(newest: Commit) -> str:
    """Identifies the rows of a shard; empty for those of generation 0."""
    if newest.is_withdrawn:
        return f"withdrawn {newest.generation}"
    return str(newest.rows_since) if newest.rows_since else ""


def _check_num_rows(rows: RowsT, commit: Commit) -> RowsT:
    if len(rows) != commit.num_rows:
        raise DamagedFile(commit.file, f"it has {len(rows)} rows, but its marker says {commit.num_rows}")
    return rows


@contextmanager
def _decoding(commit: Commit) -> Iterator[None]:
    """Raise DamagedFile if the file, whose marker may have no checksum, cannot be decoded."""
    try:
        yield
    except (pa.ArrowException, OSError, MemoryError, OverflowError, UnicodeDecodeError) as error:
        raise DamagedFile(commit.file, " ".join(str(error).split()) or type(error).__name__) from error


def prefetch(read: Callable[[str], T], shards: Iterable[str]) -> Iterator[T]:
    """Call a function for each shard and yield the results in order.

    Threads run some calls ahead, because the calls mostly wait for the storage.
    """
    queue = iter(shards)
    with ThreadPoolExecutor(_NUM_THREADS) as threads:
        running = deque(threads.submit(read, shard) for shard in islice(queue, 2 * _NUM_THREADS))
        while running:
            yield running.popleft().result()
            running.extend(threads.submit(read, shard) for shard in islice(queue, 1))
