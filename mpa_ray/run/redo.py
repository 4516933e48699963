"""Redoes a part of a committed shard: the rows that failed, and the rows whose source has changed since."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, TypeVar

from mpa_ray.records import HasOutcome, Outcome, State
from mpa_ray.run.joined_datasets import Dataset
from mpa_ray.run.prefetch import prefetch

RowT = TypeVar("RowT", bound=HasOutcome)

ANY_REASON = "failed"
"""Stands for all reasons why rows fail."""


@dataclass(frozen=True)
class ShardPlan:
    """Which rows of a shard are redone, and which rows of its newest generation are kept."""

    generation: int = 0
    """The generation to commit."""
    source_generation: int = 0
    """The generation of the source's rows."""
    kept: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """The rows of the images that are not visited again, by image."""
    partly: Mapping[str, Sequence[Any | None]] = field(default_factory=dict)
    """The rows of the images that are redone in part, by image. None stands for a row that is redone."""
    is_current: bool = False
    """Whether nothing is left to redo, because another driver has already done it."""

    def merge(self, images: Sequence[str], rows: Iterable[Any]) -> list[Any]:
        """Return the kept rows and the new rows together, in the order of the shard's images."""
        if self.generation == 0:
            return list(rows)
        merged = {**self.kept, **by_image(rows)}
        for image_id, before in self.partly.items():
            # An image that failed as a whole has one row, even if several questions are asked about each image.
            if len(before) == len(merged[image_id]):
                pairs = zip(before, merged[image_id], strict=True)
                merged[image_id] = [new if old is None else old for old, new in pairs]
        return [row for image_id in images for row in merged.get(image_id, ())]


@dataclass(frozen=True)
class _ImageOutcome(Outcome):
    image_id: str


@dataclass(frozen=True)
class Redo:
    """Decides which images of committed shards are visited again. All other rows are kept."""

    target: Dataset[Any]
    source: Dataset[Any]
    reasons: frozenset[str] = frozenset()
    """An image is visited again if one of its rows failed for one of these reasons; `ANY_REASON` stands for all."""

    def shards(self, committed: Sequence[str]) -> list[str]:
        """Return the committed shards that have an image to visit again, in the given order."""
        again = set(outdated(self.target, self.source, committed))
        if self.reasons:
            with_failed = prefetch(self._has_failed, committed)
            again.update(shard for shard, has_failed in zip(committed, with_failed, strict=True) if has_failed)
        return [shard for shard in committed if shard in again]

    def plan(self, shard: str, source_generation: int, source_rows: Sequence[Any]) -> ShardPlan:
        """Decide which images of a shard to visit again.

        Args:
            shard: The shard.
            source_generation: The newest generation of the source's shard.
            source_rows: The rows of that generation.
        """
        newest = self.target.newest_marker(shard)
        if newest is None or newest.is_withdrawn:
            return ShardPlan(0 if newest is None else newest.generation + 1, source_generation)
        source_by_image = by_image(source_rows)
        changed = self._changed(shard, newest.source_generation, source_generation, source_by_image)
        again = set(changed)
        rows = by_image(self.target.rows_of(newest))
        again.update(image_id for image_id in source_by_image if image_id not in rows)
        again.update(
            image_id
            for image_id, of_image in rows.items()
            if any(map(self._is_redone, of_image)) and not _is_failed(source_by_image.get(image_id, ()))
        )
        kept = {image_id: of_image for image_id, of_image in rows.items() if image_id not in again}
        partly = {
            image_id: [None if self._is_redone(row) else row for row in rows[image_id]]
            for image_id in again - changed
            if image_id in rows
        }
        is_current = not again and newest.source_generation == source_generation
        return ShardPlan(newest.generation + 1, source_generation, kept, partly, is_current)

    def _has_failed(self, shard: str) -> bool:
        failed = {row.image_id for row in self.target.columns(shard, _ImageOutcome) if self._is_redone(row)}
        if not failed:
            return False
        _, source_rows = self.source.read_commit(shard)
        # If the source rows of an image failed, the image fails for the same reason: another visit changes nothing.
        return any(image_id in failed and not _is_failed(rows) for image_id, rows in by_image(source_rows).items())

    def _is_redone(self, row: HasOutcome) -> bool:
        return row.state == State.FAILED and (ANY_REASON in self.reasons or str(row.reason) in self.reasons)

    def _changed(self, shard: str, old: int, new: int, rows: Mapping[str, Sequence[Any]]) -> set[str]:
        """Return the images whose source rows differ between two generations.

        All images are returned if the rows of the older generation cannot be read.
        """
        current = self.source.generation_of(shard, new)
        if old == new or (current is not None and current.rows_since <= old):
            return set()
        try:
            marker = self.source.generation_of(shard, old)
            if marker is None or marker.is_withdrawn:
                return set(rows)
            before = by_image(self.source.rows_of(marker))
        except (FileNotFoundError, ValueError):
            before = {}
        return {image_id for image_id, of_image in rows.items() if before.get(image_id) != of_image}


def outdated(target: Dataset[Any], source: Dataset[Any], shards: Iterable[str]) -> list[str]:
    """Return the committed shards whose rows do not come from the newest generation of the source.

    Lists the source's shards with later generations, and reads the markers of these shards in the target.
    """
    newest = source.generations()
    made_again = [shard for shard in shards if shard in newest]
    commits = prefetch(target.commit_of, made_again)
    used = {shard: commit.source_generation for shard, commit in zip(made_again, commits, strict=True) if commit}
    older = [shard for shard, generation in used.items() if generation < newest[shard]]
    # A repair may have made the same rows again.
    current = zip(older, prefetch(source.commit_of, older), strict=True)
    return [shard for shard, commit in current if commit is None or used[shard] < commit.rows_since]


def by_image(rows: Iterable[RowT]) -> dict[str, list[RowT]]:
    """Group rows by image. The rows of an image must be adjacent."""
    return {image_id: list(of_image) for image_id, of_image in groupby(rows, key=lambda row: row.image_id)}


def _is_failed(rows: Sequence[Any]) -> bool:
    """Whether all source rows of an image failed. Rows without a state, such as questions, cannot fail."""
    return all(getattr(row, "state", None) == State.FAILED for row in rows)
