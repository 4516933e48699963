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
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from itertools import count, islice, takewhile
from types import MappingProxyType
from typing import Any, Generic, Protocol, TypeVar

import pyarrow as pa

from mpa_ray.records import RowT
from mpa_ray.run.fingerprint_files import FingerprintFiles
from mpa_ray.run.parquet_rows import from_parquet, read_columns, read_table, to_parquet
from mpa_ray.run.suspects import SuspectsFile
from mpa_ray.storage.storage import Storage

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

_NUM_THREADS = 16
_GENERATIONS = "generations"
"""The folder of the markers of later generations. It is usually empty, so listing it takes one request."""
_UNREAD = "unread"
NO_VERSIONS: Mapping[str, str] = MappingProxyType({})
"""The library versions for rows that were not made by a model."""
MARKER_FOLDERS = ("commits", _GENERATIONS, _UNREAD)
"""The folders of a dataset whose files are created only if they do not exist, and are never deleted."""
SUSPECTS = "suspects"
"""The folder of the files about images that may kill engines. A file is used until its shard is committed."""


@dataclass(frozen=True)
class Commit:
    """The content of a marker: which file holds the rows of a shard, and how the rows were made."""

    shard: str
    file: str
    num_rows: int
    generation: int = 0
    """0 for the first commit of the shard, and one more each time the shard is redone."""
    source_generation: int = 0
    """The generation of the source's shard from which the rows were made."""
    left_out: dict[str, int] = field(default_factory=dict)
    """For a shard of the corpus: how many files the listing left out between the last image of the previous shard and
    the last image of this shard, by ending or reason."""
    versions: dict[str, str] = field(default_factory=dict)
    """The versions of the libraries with which the rows were made; see `mpa_ray.run.versions`."""
    fingerprint: str = ""
    """The digest of the dataset's fingerprint; "" in markers of earlier versions."""

    @classmethod
    def from_json(cls, content: bytes) -> Commit:
        """Read a marker. Fields that another version has added are ignored."""
        known = {known.name for known in fields(cls)}
        return cls(**{name: value for name, value in json.loads(content).items() if name in known})


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
        self.storage.write(file, to_parquet(rows, self.row_type))
        digest = self.fingerprints.fix(self.folder) if self.fingerprints is not None else ""
        left = dict(left_out or {})
        values = asdict(Commit(shard, file, len(rows), generation, source_generation, left, dict(versions), digest))
        marker = json.dumps({name: value for name, value in values.items() if value not in ({}, "")})
        return self.storage.create(self._marker(shard, generation), marker.encode())

    def check_fingerprint(self) -> bool:
        """Compare the settings of this command's commits with those that the dataset's rows were made with.

        Returns:
            Whether they are known to agree. False if the dataset has no rows yet.

        Raises:
            FingerprintMismatch: they differ.
        """
        return self.fingerprints is None or self.fingerprints.check_registered(self.folder)

    def commit_of(self, shard: str) -> Commit | None:
        """Return the shard's newest marker, or None if the shard is not committed."""
        return next(reversed(self.history(shard)), None)

    def history(self, shard: str) -> list[Commit]:
        """Return the markers of all generations of a shard, the newest last."""
        markers = map(partial(self.generation_of, shard), count())
        return [commit for commit in takewhile(lambda commit: commit is not None, markers) if commit is not None]

    def generation_of(self, shard: str, generation: int) -> Commit | None:
        """Return the marker of one generation of a shard, or None if there is none."""
        try:
            return Commit.from_json(self.storage.read(self._marker(shard, generation)))
        except FileNotFoundError:
            return None

    def generations(self) -> dict[str, int]:
        """Return the newest generation of each shard that was redone. Lists only the markers of such shards."""
        newest: dict[str, int] = {}
        for path in self.storage.list(f"{self.folder}/{_GENERATIONS}"):
            shard, _, generation = path.rpartition("/")[2].removesuffix(".json").partition(".")
            newest[shard] = max(newest.get(shard, 0), int(generation))
        return newest

    def version(self) -> str:
        """Return a hash of the generations of all shards; empty if no shard was redone."""
        newest = sorted(self.generations().items())
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
        """The file about images of the shard that may kill engines. It is used until the generation is committed."""
        return SuspectsFile(self.storage, f"{self.folder}/{SUSPECTS}/{shard}.{generation}.json")

    def list_suspects(self) -> set[str]:
        """The paths of all files about images that may kill engines. The folder of these files is usually empty."""
        return set(self.storage.list(f"{self.folder}/{SUSPECTS}"))

    def is_committed(self, shard: str) -> bool:
        return self.storage.exists(self._marker(shard))

    def missing(self, shards: Iterable[str]) -> list[str]:
        """Return the shards that are not committed, in the given order."""
        names = list(shards)
        are_committed = prefetch(self.is_committed, names)
        return [name for name, is_committed in zip(names, are_committed, strict=True) if not is_committed]

    def leading(self) -> list[str]:
        """Return the committed shards before the first shard that is not committed."""
        are_committed = takewhile(bool, prefetch(self.is_committed, map(shard_name, count())))
        return [shard_name(index) for index, _ in enumerate(are_committed)]

    def num_rows(self, shards: Iterable[str]) -> int:
        """Return the number of rows in the committed shards among the given ones. Reads only markers."""
        return sum(commit.num_rows for commit in prefetch(self.commit_of, shards) if commit is not None)

    def read(self, shard: str) -> list[RowT]:
        """Return the rows of a committed shard.

        Raises:
            FileNotFoundError: the shard is not committed, or its file is missing.
            ValueError: the file has unexpected columns, or a number of rows that differs from its marker's.
        """
        return self.read_commit(shard)[1]

    def read_commit(self, shard: str) -> tuple[Commit, list[RowT]]:
        """Return a shard's newest marker and its rows. Raises as `read` does."""
        commit = self._committed(shard)
        return commit, self.rows_of(commit)

    def rows_of(self, commit: Commit) -> list[RowT]:
        """Return the rows that a marker of this dataset publishes. Raises as `read` does."""
        return _check_num_rows(from_parquet(self.storage.read(commit.file), self.row_type), commit)

    def table(self, shard: str) -> pa.Table:
        """Return the rows of a committed shard as an Arrow table. Raises as `read` does."""
        commit = self._committed(shard)
        table = read_table(self.storage.read(commit.file), self.row_type)
        if table.num_rows != commit.num_rows:
            raise ValueError(f"{commit.file}: {table.num_rows} rows, but its marker says {commit.num_rows}")
        return table

    def committed(self) -> list[str]:
        """Return all committed shards, in order. This only lists the markers, so the corpus need not be complete."""
        markers = self.storage.list(f"{self.folder}/commits")
        return sorted((path.rpartition("/")[2].removesuffix(".json") for path in markers), key=int)

    def columns(self, shard: str, names: Sequence[str]) -> list[dict[str, Any]]:
        """Return some columns of a committed shard. Raises as `read` does, and KeyError for an unknown column."""
        commit = self._committed(shard)
        return _check_num_rows(read_columns(self.storage.read(commit.file), names), commit)

    def _committed(self, shard: str) -> Commit:
        commit = self.commit_of(shard)
        if commit is None:
            raise FileNotFoundError(f"{self.folder}: shard {shard} is not committed")
        return commit

    def rows(self, shards: Iterable[str]) -> Iterator[RowT]:
        """Yield the rows of the given shards, and skip shards that are not committed."""
        for rows in prefetch(lambda shard: self.read(shard) if self.is_committed(shard) else [], shards):
            yield from rows

    def _marker(self, shard: str, generation: int = 0) -> str:
        if generation == 0:
            return f"{self.folder}/commits/{shard}.json"
        return f"{self.folder}/{_GENERATIONS}/{shard}.{generation}.json"


def _check_num_rows(rows: list[T], commit: Commit) -> list[T]:
    if len(rows) != commit.num_rows:
        raise ValueError(f"{commit.file}: {len(rows)} rows, but its marker says {commit.num_rows}")
    return rows


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
