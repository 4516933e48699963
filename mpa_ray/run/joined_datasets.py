"""Several datasets that a pass reads or writes as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeAlias, TypeVar

from mpa_ray.records import OfModel, OutcomeT, RowT
from mpa_ray.run.dataset import ShardedDataset
from mpa_ray.run.marker import NO_VERSIONS, Commit
from mpa_ray.run.suspects import SuspectsFile

T = TypeVar("T")


@dataclass(frozen=True)
class JoinedDatasets(Generic[RowT]):
    """Several datasets as one, for a single pass over all of them. Shard names begin with the dataset's name.

    For example, `chartqa/000012` is shard `000012` of the dataset `chartqa`.
    """

    parts: Mapping[str, ShardedDataset[RowT]]

    def commit(
        self,
        shard: str,
        rows: Sequence[RowT],
        generation: int = 0,
        source_generation: int = 0,
        versions: Mapping[str, str] = NO_VERSIONS,
    ) -> bool:
        """See `ShardedDataset.commit`."""
        part, name = self._place(shard)
        return part.commit(name, rows, generation, source_generation, versions)

    def check_fingerprint(self) -> bool:
        """See `ShardedDataset.check_fingerprint`. Returns whether all datasets agree."""
        # A list, so that every dataset is compared, even if an earlier dataset has no rows.
        agreeing = [part.check_fingerprint() for part in self.parts.values()]
        return all(agreeing)

    def read(self, shard: str) -> list[RowT]:
        """See `ShardedDataset.read`."""
        part, name = self._place(shard)
        return part.read(name)

    def read_commit(self, shard: str) -> tuple[Commit, list[RowT]]:
        """See `ShardedDataset.read_commit`."""
        part, name = self._place(shard)
        return part.read_commit(name)

    def rows_of(self, commit: Commit) -> list[RowT]:
        """See `ShardedDataset.rows_of`."""
        return next(iter(self.parts.values())).rows_of(commit)

    def commit_of(self, shard: str) -> Commit | None:
        """See `ShardedDataset.commit_of`."""
        part, name = self._place(shard)
        return part.commit_of(name)

    def newest_marker(self, shard: str) -> Commit | None:
        """See `ShardedDataset.newest_marker`."""
        part, name = self._place(shard)
        return part.newest_marker(name)

    def generation_of(self, shard: str, generation: int) -> Commit | None:
        """See `ShardedDataset.generation_of`."""
        part, name = self._place(shard)
        return part.generation_of(name, generation)

    def generations(self) -> dict[str, int]:
        """See `ShardedDataset.generations`."""
        return {
            f"{name}/{shard}": generation
            for name, part in self.parts.items()
            for shard, generation in part.generations().items()
        }

    def count_unread(self, shard: str, generation: int, command: str) -> int:
        """See `ShardedDataset.count_unread`."""
        part, name = self._place(shard)
        return part.count_unread(name, generation, command)

    def suspects_file(self, shard: str, generation: int) -> SuspectsFile:
        """See `ShardedDataset.suspects_file`."""
        part, name = self._place(shard)
        return part.suspects_file(name, generation)

    def list_suspects(self) -> set[str]:
        """See `ShardedDataset.list_suspects`."""
        return {path for part in self.parts.values() for path in part.list_suspects()}

    def columns(self, shard: str, columns: type[T]) -> list[T]:
        """See `ShardedDataset.columns`."""
        part, name = self._place(shard)
        return part.columns(name, columns)

    def _place(self, shard: str) -> tuple[ShardedDataset[RowT], str]:
        part, _, name = shard.partition("/")
        return self.parts[part], name


@dataclass(frozen=True)
class DatasetsOfModels(Generic[OutcomeT]):
    """The datasets of several models, which one pass fills shard by shard."""

    parts: Mapping[str, ShardedDataset[OutcomeT] | JoinedDatasets[OutcomeT]]
    """The dataset of each model, by the model's name."""

    def commit(
        self,
        shard: str,
        rows: Sequence[OfModel[OutcomeT]],
        generation: int = 0,
        source_generation: int = 0,
        versions: Mapping[str, str] = NO_VERSIONS,
    ) -> bool:
        """Write a shard of each dataset. Returns False if another attempt has published the shard in any dataset."""
        committed = [
            part.commit(shard, [of.row for of in rows if of.model == name], generation, source_generation, versions)
            for name, part in self.parts.items()
        ]
        return all(committed)

    def check_fingerprint(self) -> bool:
        """See `ShardedDataset.check_fingerprint`. Returns whether all datasets agree."""
        # A list, so that every dataset is compared, even if an earlier dataset has no rows.
        agreeing = [part.check_fingerprint() for part in self.parts.values()]
        return all(agreeing)

    def count_unread(self, shard: str, generation: int, command: str) -> int:
        """See `ShardedDataset.count_unread`. Returns the largest number among the datasets."""
        return max(part.count_unread(shard, generation, command) for part in self.parts.values())

    def suspects_file(self, shard: str, generation: int) -> SuspectsFile:
        """See `ShardedDataset.suspects_file`. The file is in the dataset of the first model."""
        file = next(iter(self.parts.values())).suspects_file(shard, generation)
        return replace(file, path=f"{file.path.removesuffix('.json')}.shared.json")

    def list_suspects(self) -> set[str]:
        """See `ShardedDataset.list_suspects`."""
        return next(iter(self.parts.values())).list_suspects()

    def read(self, shard: str) -> list[OfModel[OutcomeT]]:
        """Return the rows of all models, one model after the other. Raises as `ShardedDataset.read` does."""
        return [OfModel(name, row) for name, part in self.parts.items() for row in part.read(shard)]


Dataset: TypeAlias = ShardedDataset[RowT] | JoinedDatasets[RowT]
