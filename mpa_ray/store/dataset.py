"""A dataset in shards, each published by one small marker that is created only if absent.

A shard's rows go to a Parquet file whose name no other attempt shares; only then is the marker created that names it.
Readers look at markers alone, so what a dead or slower attempt left behind is never read.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any, Generic

from mpa_ray.records import RowT
from mpa_ray.store.parquet import from_parquet, read_columns, to_parquet
from mpa_ray.store.storage import Storage

_NUM_THREADS = 16


@dataclass(frozen=True)
class Commit:
    """The content of a marker: the shard's one true file."""

    shard: str
    file: str
    num_rows: int


def shard_name(index: int) -> str:
    return f"{index:06d}"


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
        # A question to an object store takes a hundred times longer than one to a disk.
        with ThreadPoolExecutor(_NUM_THREADS) as threads:
            names = list(shards)
            return [
                s for s, committed in zip(names, threads.map(self.is_committed, names), strict=True) if not committed
            ]

    def read(self, shard: str) -> list[RowT]:
        """The rows of a committed shard.

        Raises:
            FileNotFoundError: the shard is not committed, or its file is gone.
            ValueError: the file does not hold what the marker says.
        """
        commit, content = self._committed(shard)
        rows = from_parquet(content, self.row_type)
        if len(rows) != commit.num_rows:
            raise ValueError(f"{commit.file}: {len(rows)} rows, its marker says {commit.num_rows}")
        return rows

    def columns(self, shards: Iterable[str], names: Sequence[str]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
        """Some columns of committed shards, each with its shard's name, in the shards' order. Raises as `read` does."""
        with ThreadPoolExecutor(_NUM_THREADS) as threads:
            for batch in _batches(shards, 4 * _NUM_THREADS):
                contents = threads.map(lambda shard: self._committed(shard)[1], batch)
                yield from ((shard, read_columns(c, names)) for shard, c in zip(batch, contents, strict=True))

    def _committed(self, shard: str) -> tuple[Commit, bytes]:
        commit = self.commit_of(shard)
        if commit is None:
            raise FileNotFoundError(f"{self.folder}: shard {shard} is not committed")
        return commit, self.storage.read(commit.file)

    def rows(self, shards: Iterable[str]) -> Iterator[RowT]:
        """The rows of every committed shard among those given."""
        for shard in shards:
            if self.is_committed(shard):
                yield from self.read(shard)

    def _marker(self, shard: str) -> str:
        return f"{self.folder}/commits/{shard}.json"


def _batches(names: Iterable[str], size: int) -> Iterator[list[str]]:
    queue = iter(names)
    while batch := list(islice(queue, size)):
        yield batch
