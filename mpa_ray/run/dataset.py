"""A dataset in shards, each published by one small marker that is created only if absent.

A shard's rows go to a Parquet file whose name no other attempt shares; only then is the marker created that names it.
Readers look at markers alone, so what a dead or slower attempt left behind is never read.
"""

from __future__ import annotations

import json
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import count, islice, takewhile
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

from mpa_ray.records import OfModel, OutcomeT, RowT
from mpa_ray.run.parquet_rows import from_parquet, read_columns, to_parquet
from mpa_ray.storage.storage import Storage

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

_NUM_THREADS = 16


@dataclass(frozen=True)
class Commit:
    """The content of a marker: the shard's one true file."""

    shard: str
    file: str
    num_rows: int


def shard_name(index: int) -> str:
    return f"{index:06d}"


class ShardSource(Protocol[T_co]):
    """Shards that can be read."""

    def read(self, shard: str) -> Sequence[T_co]:
        """The rows of a committed shard. Raises as `ShardedDataset.read`."""
        ...


class ShardTarget(Protocol[T]):
    """Shards that can be committed, and read again."""

    def commit(self, shard: str, rows: Sequence[T]) -> bool:
        """Write a shard and publish it. False where another attempt was first: then its rows count, not these."""
        ...

    def read(self, shard: str) -> list[T]:
        """The rows of a committed shard. Raises as `ShardedDataset.read`."""
        ...


@dataclass(frozen=True)
class ShardedDataset(Generic[RowT]):
    """Rows of one type under one folder of a run."""

    storage: Storage
    folder: str
    row_type: type[RowT]

    def commit(self, shard: str, rows: Sequence[RowT]) -> bool:
        """Write a shard and publish it. False where another attempt was first: then its rows count, not these."""
        file = f"{self.folder}/data/{shard}-{uuid.uuid4().hex}.parquet"
        self.storage.write(file, to_parquet(rows, self.row_type))
        marker = json.dumps(asdict(Commit(shard, file, len(rows))))
        return self.storage.create(self._marker(shard), marker.encode())

    def commit_of(self, shard: str) -> Commit | None:
        """The shard's marker, or None while it is not committed."""
        try:
            return Commit(**json.loads(self.storage.read(self._marker(shard))))
        except FileNotFoundError:
            return None

    def is_committed(self, shard: str) -> bool:
        return self.storage.exists(self._marker(shard))

    def missing(self, shards: Iterable[str]) -> list[str]:
        """Those of the shards that are still to be done, in their order."""
        names = list(shards)
        return [s for s, committed in zip(names, ahead(self.is_committed, names), strict=True) if not committed]

    def leading(self) -> list[str]:
        """The shards that are committed, from the first on to the first that is not."""
        committed = zip(map(shard_name, count()), ahead(self.is_committed, map(shard_name, count())), strict=True)
        return [shard for shard, _ in takewhile(lambda found: found[1], committed)]

    def num_rows(self, shards: Iterable[str]) -> int:
        """Of the committed ones among the shards, by their markers."""
        return sum(commit.num_rows for commit in ahead(self.commit_of, shards) if commit is not None)

    def read(self, shard: str) -> list[RowT]:
        """The rows of a committed shard.

        Raises:
            FileNotFoundError: the shard is not committed, or its file is gone.
            ValueError: the file does not hold what the marker says.
        """
        commit, content = self._committed(shard)
        return _as_many(from_parquet(content, self.row_type), commit)

    def columns(self, shard: str, names: Sequence[str]) -> list[dict[str, Any]]:
        """Some columns of a committed shard's rows. Raises as `read` does, and KeyError for an unknown column."""
        commit, content = self._committed(shard)
        return _as_many(read_columns(content, names), commit)

    def _committed(self, shard: str) -> tuple[Commit, bytes]:
        commit = self.commit_of(shard)
        if commit is None:
            raise FileNotFoundError(f"{self.folder}: shard {shard} is not committed")
        return commit, self.storage.read(commit.file)

    def rows(self, shards: Iterable[str]) -> Iterator[RowT]:
        """The rows of every committed shard among those given."""
        for found in ahead(lambda shard: self.read(shard) if self.is_committed(shard) else [], shards):
            yield from found

    def _marker(self, shard: str) -> str:
        return f"{self.folder}/commits/{shard}.json"


@dataclass(frozen=True)
class JoinedDatasets(Generic[RowT]):
    """Several datasets as one, so that one pass goes over all; a shard is called by both names: `chartqa/000012`."""

    parts: Mapping[str, ShardedDataset[RowT]]

    def commit(self, shard: str, rows: Sequence[RowT]) -> bool:
        """As `ShardedDataset.commit`."""
        part, name = self._place(shard)
        return part.commit(name, rows)

    def read(self, shard: str) -> list[RowT]:
        """As `ShardedDataset.read`."""
        part, name = self._place(shard)
        return part.read(name)

    def columns(self, shard: str, names: Sequence[str]) -> list[dict[str, Any]]:
        """As `ShardedDataset.columns`."""
        part, name = self._place(shard)
        return part.columns(name, names)

    def _place(self, shard: str) -> tuple[ShardedDataset[RowT], str]:
        part, _, name = shard.partition("/")
        return self.parts[part], name


@dataclass(frozen=True)
class DatasetsOfModels(Generic[OutcomeT]):
    """What several models give for the same shards, each in its own dataset, committed together."""

    parts: Mapping[str, ShardedDataset[OutcomeT] | JoinedDatasets[OutcomeT]]
    """By the models' names."""

    def commit(self, shard: str, rows: Sequence[OfModel[OutcomeT]]) -> bool:
        """False where another attempt was first with any of them."""
        committed = [
            part.commit(shard, [found.row for found in rows if found.model == name])
            for name, part in self.parts.items()
        ]
        return all(committed)

    def read(self, shard: str) -> list[OfModel[OutcomeT]]:
        """As `ShardedDataset.read`, model by model."""
        return [OfModel(name, row) for name, part in self.parts.items() for row in part.read(shard)]


Dataset: TypeAlias = ShardedDataset[RowT] | JoinedDatasets[RowT]


def _as_many(rows: list[T], commit: Commit) -> list[T]:
    if len(rows) != commit.num_rows:
        raise ValueError(f"{commit.file}: {len(rows)} rows, its marker says {commit.num_rows}")
    return rows


def ahead(work: Callable[[str], T], shards: Iterable[str]) -> Iterator[T]:
    """What `work` makes of each shard, in their order; a few are worked on ahead, since most of it is waiting."""
    queue = iter(shards)
    with ThreadPoolExecutor(_NUM_THREADS) as threads:
        running = deque(threads.submit(work, shard) for shard in islice(queue, 2 * _NUM_THREADS))
        while running:
            yield running.popleft().result()
            running.extend(threads.submit(work, shard) for shard in islice(queue, 1))
