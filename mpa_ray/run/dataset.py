"""A dataset in shards. Each shard is published by a marker: a small file that is created only if it does not exist.

An attempt first writes a shard's rows to a Parquet file whose name no other attempt uses, and then creates the marker,
which names the file. Readers follow only markers, so they never read the files of dead or slower attempts.

A shard that is redone gets a new generation: another marker beside the first, created in the same way. No marker is
ever changed or deleted, and readers follow the newest.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Generic, Protocol, TypeVar

import pyarrow as pa

from mpa_ray.errors import DamagedFile
from mpa_ray.records import RowT
from mpa_ray.run.fingerprint_files import FingerprintFiles
from mpa_ray.run.marker import NO_VERSIONS, Commit, decoding
from mpa_ray.run.markers import UNREAD, Markers
from mpa_ray.run.parquet_rows import from_parquet, read_columns, read_table, to_parquet
from mpa_ray.run.prefetch import prefetch
from mpa_ray.run.suspects import SuspectsFile
from mpa_ray.storage.storage import Storage

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
RowsT = TypeVar("RowsT", bound=Sized)

SUSPECTS = "suspects"
"""The folder of the files about images that may kill engines. A file is used until its shard is committed."""


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
        """Write and publish a shard. Returns False if another attempt has published the shard first."""
        ...

    def check_fingerprint(self) -> bool:
        """See `ShardedDataset.check_fingerprint`."""
        ...

    def count_unread(self, shard: str, generation: int, command: str) -> int:
        """Record that a command could not read a shard's images, and return the number of such commands so far."""
        ...

    def suspects_file(self, shard: str, generation: int) -> SuspectsFile:
        """The file about images of the shard that may kill engines."""
        ...

    def list_suspects(self) -> set[str]:
        """The paths of all files of the dataset about images that may kill engines."""
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
    fingerprints: FingerprintFiles | None = field(default=None, compare=False, repr=False)
    """Holds the fingerprint that commits must agree with; None for datasets without a fingerprint."""

    def __reduce__(self) -> tuple[type[ShardedDataset[Any]], tuple[object, ...]]:
        fingerprints = self.fingerprints.only(self.folder) if self.fingerprints is not None else None
        return ShardedDataset, (self.storage, self.folder, self.row_type, fingerprints)

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
        """Write and publish a shard.

        Returns False if another attempt has published the shard first. Readers then get the rows of that attempt.

        Args:
            shard: The shard.
            rows: Its rows.
            generation: 0, or one more than the newest generation if the shard is redone.
            source_generation: The generation of the source's shard from which the rows were made.
            versions: See `Commit.versions`.
            left_out: See `Commit.left_out`.

        Raises:
            FingerprintMismatch: the dataset has rows that were made with other settings.
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
            fingerprint=self.fingerprints.fix(self.folder) if self.fingerprints is not None else "",
        )
        return self.markers.create(commit)

    def commit_missing(self, shard: str, rows: Sequence[RowT], *, left_out: Mapping[str, int] | None = None) -> bool:
        """Commit a shard that has no rows, as the generation that is next. Returns False if the shard has rows."""
        newest = self.markers.newest(shard)
        if newest is not None and not newest.is_withdrawn:
            return False
        return self.commit(shard, rows, 0 if newest is None else newest.generation + 1, left_out=left_out)

    def check_fingerprint(self) -> bool:
        """Compare the settings of this command's commits with those that the dataset's rows were made with.

        Returns:
            Whether they are known to agree. False if the dataset has no rows yet.

        Raises:
            FingerprintMismatch: they differ.
        """
        return self.fingerprints is None or self.fingerprints.check_registered(self.folder)

    @property
    def markers(self) -> Markers:
        """The markers of the shards."""
        return Markers(self.storage, self.folder)

    def commit_of(self, shard: str) -> Commit | None:
        """See `Markers.commit_of`."""
        return self.markers.commit_of(shard)

    def newest_marker(self, shard: str) -> Commit | None:
        """See `Markers.newest`."""
        return self.markers.newest(shard)

    def history(self, shard: str) -> list[Commit]:
        """See `Markers.history`."""
        return self.markers.history(shard)

    def generation_of(self, shard: str, generation: int) -> Commit | None:
        """See `Markers.generation_of`."""
        return self.markers.generation_of(shard, generation)

    def generations(self) -> dict[str, int]:
        """See `Markers.generations`."""
        return self.markers.generations()

    def version(self) -> str:
        """See `Markers.version`."""
        return self.markers.version()

    def count_unread(self, shard: str, generation: int, command: str) -> int:
        """Record that a command could not read a shard's images, and return the number of such commands so far.

        Args:
            shard: The shard.
            generation: The generation that the command tried to commit.
            command: Identifies the command. Each command counts once.
        """
        for number in count(1):
            path = f"{self.folder}/{UNREAD}/{shard}.{generation}.{number}.json"
            content = json.dumps({"command": command}).encode()
            if self.storage.create(path, content) or self.storage.read(path) == content:
                return number
        raise AssertionError("counting does not end")

    def suspects_file(self, shard: str, generation: int) -> SuspectsFile:
        """The file about images of the shard that may kill engines. It is used until the generation is committed."""
        return SuspectsFile(self.storage, f"{self.folder}/{SUSPECTS}/{shard}.{generation}.json")

    def list_suspects(self) -> set[str]:
        """The paths of all files about images that may kill engines. The folder of these files is usually empty."""
        return set(self.storage.list(f"{self.folder}/{SUSPECTS}"))

    def is_committed(self, shard: str) -> bool:
        """Whether a shard has rows."""
        return self.commit_of(shard) is not None

    def missing(self, shards: Iterable[str]) -> list[str]:
        """Return the shards that are not committed or were withdrawn, in the given order."""
        return self.markers.missing(shards)

    def num_rows(self, shards: Iterable[str]) -> int:
        """Return the number of rows in the committed shards among the given ones. Reads only markers."""
        return sum(commit.num_rows for commit in prefetch(self.commit_of, shards) if commit is not None)

    def read(self, shard: str) -> list[RowT]:
        """Return the rows of a committed shard.

        Raises:
            FileNotFoundError: the shard is not committed.
            DamagedFile: the newest marker or the file is damaged, or the file is missing.
            ValueError: the file has unexpected columns.
        """
        return self.read_commit(shard)[1]

    def read_commit(self, shard: str) -> tuple[Commit, list[RowT]]:
        """Return a shard's newest marker and its rows. Raises as `read` does."""
        commit = self._committed(shard)
        return commit, self.rows_of(commit)

    def rows_of(self, commit: Commit) -> list[RowT]:
        """Return the rows that a marker of this dataset publishes. Raises as `read` does."""
        content = self.content_of(commit)
        with decoding(commit):
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
        return self.table_of(self._committed(shard))

    def table_of(self, commit: Commit) -> pa.Table:
        """Return the rows that a marker of this dataset publishes as an Arrow table. Raises as `read` does."""
        content = self.content_of(commit)
        with decoding(commit):
            return _check_num_rows(read_table(content, self.row_type), commit)

    def committed(self) -> list[str]:
        """Return all committed shards, in order. This only lists the markers, so the corpus need not be complete."""
        return self.markers.committed()

    def columns(self, shard: str, columns: type[T]) -> list[T]:
        """Return the columns of a committed shard that are fields of `columns`, a dataclass. Raises as `read` does."""
        commit = self._committed(shard)
        content = self.content_of(commit)
        with decoding(commit):
            return _check_num_rows(read_columns(content, columns), commit)

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


def _check_num_rows(rows: RowsT, commit: Commit) -> RowsT:
    if len(rows) != commit.num_rows:
        raise DamagedFile(commit.file, f"it has {len(rows)} rows, but its marker says {commit.num_rows}")
    return rows
