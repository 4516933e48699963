"""The first operators of a graph: list the shards, then read each shard's rows and image files."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import ray

from mpa_ray.corpus.read import Content
from mpa_ray.errors import ConfigError, RunError
from mpa_ray.imaging.decode import ImageProblem
from mpa_ray.observability.log_context import log_context
from mpa_ray.observability.usage import Usage
from mpa_ray.pipeline.coordination.duplicates import Sighting
from mpa_ray.pipeline.death_recorder import current_process
from mpa_ray.pipeline.graph_rows import Failure, FetchedShard, encode
from mpa_ray.pipeline.pass_spec import Pass, ShardLeft
from mpa_ray.records import Reason
from mpa_ray.run.redo import ShardPlan
from mpa_ray.stages.image_work import ImageWork

MAX_RUNS = 3
"""How many runs of the command try to read an image. If all of them fail, the image becomes a failed row, even if the
reason may be temporary."""
_ASSUMED_BYTES = 2**20
"""The assumed size of a file if its source does not list sizes."""


@dataclass(frozen=True)
class NameShards:
    """Makes the first rows of a graph: the coordinator's shards in their order, each as soon as it is known."""

    coordinator: Any

    def __call__(self, _: dict[str, Any]) -> Iterator[dict[str, Any]]:
        index = 0
        while (shards := ray.get(self.coordinator.shards_from.remote(index))) is not None:
            index += len(shards)
            yield from ({"shard": shard} for shard in shards)


@dataclass(frozen=True)
class FetchShard:
    """Read a shard's rows and the files of the images that the pass needs."""

    work: Pass[Any]
    coordinator: Any

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        shard = row["shard"]
        with log_context(**self.work.log_fields, shard=shard):
            process = current_process("task that reads a shard")
            if cause := ray.get(self.coordinator.begin_fetch.remote(shard, process)):
                return encode(FetchedShard(shard, failure=Failure(cause)))
            try:
                return encode(self._fetch(shard))
            except (RunError, ConfigError, OSError, ValueError, MemoryError) as error:
                # The cause is not an image: for example, the credentials or the rows of an earlier phase are missing.
                failure = Failure.of(error)
        ray.get(self.coordinator.give_up.remote(failure))
        return encode(FetchedShard(shard, failure=failure))

    def _fetch(self, shard: str) -> FetchedShard:
        started = time.monotonic()
        commit, rows = self.work.source.read_commit(shard)
        groups = [tuple(of_image) for _, of_image in groupby(rows, key=lambda row: row.image_id)]
        plan: ShardPlan = ShardPlan(source_generation=commit.generation)
        if self.work.redo is not None:
            plan = self.work.redo.plan(shard, commit.generation, rows)
        visited = [group for group in groups if group[0].image_id not in plan.kept]
        contents = self._read(shard, visited)
        problems = (content for content in contents.values() if isinstance(content, ImageProblem))
        unread = [problem for problem in problems if problem.reason == Reason.STORAGE]
        left = self._left(shard, plan, len(visited), unread)
        # If the shard is left, its images may fail in a later run. So no image may be dropped as their duplicate yet.
        sightings = self._mark_duplicates(shard, groups, plan, {} if left is not None else contents)
        read = [content for content in contents.values() if isinstance(content, bytes)]
        num_bytes = sum(map(len, read))
        ray.get(self.coordinator.end_fetch.remote(shard, num_bytes))
        usage = Usage(num_bytes_read=num_bytes, read_s=time.monotonic() - started)
        if left is not None:
            return FetchedShard(shard, usage=usage, left=left)
        images = [
            ImageWork(
                image_id=group[0].image_id,
                uri=group[0].uri,
                rows=group,
                content=contents.get(group[0].image_id),
                content_sha256=sighting.content_sha256 if sighting else None,
            )
            for group, sighting in zip(groups, sightings, strict=True)
            if group[0].image_id not in plan.kept
        ]
        order = tuple(group[0].image_id for group in groups) if plan.generation else ()
        return FetchedShard(shard, images, usage, plan, order, len(unread))

    def _read(self, shard: str, groups: list[tuple[Any, ...]]) -> dict[str, Content]:
        """Read the files of the images that the pass needs. Returns the files by image id."""
        needed = [group for group in groups if any(map(self.work.needs_image, group))]
        expected = sum(_expected_bytes(group[0]) for group in needed)
        while not ray.get(self.coordinator.acquire_bytes.remote(shard, expected)):
            pass
        files = self.work.reader.read([group[0].uri for group in needed])
        return dict(zip((group[0].image_id for group in needed), files, strict=True))

    def _left(self, shard: str, plan: ShardPlan, num_images: int, unread: Sequence[ImageProblem]) -> ShardLeft | None:
        """Decide whether the shard is left for the next run of the command, because images could not be read.

        Returns:
            None if the shard is not left: all images were read, or this is run number `MAX_RUNS`, in which unread
            images become failed rows.
        """
        if not unread:
            return None
        num_runs = self.work.target.count_unread(shard, plan.generation, self.work.command)
        return ShardLeft(shard, num_images, len(unread), unread[0].detail) if num_runs < MAX_RUNS else None

    def _mark_duplicates(
        self, shard: str, groups: list[tuple[Any, ...]], plan: ShardPlan, contents: dict[str, Content]
    ) -> list[Sighting | None]:
        """Hash the files that were read, and replace the content of each duplicate with a reason.

        Returns:
            A sighting of each group's image, or None if its file could not be read.
        """
        if self.work.deduplicated is None:
            return [None] * len(groups)
        images = [group[0].image_id for group in groups]
        sightings = [_sighting(image_id, contents.get(image_id), plan.kept.get(image_id, ())) for image_id in images]
        while (originals := ray.get(self.coordinator.claim_images.remote(shard, sightings))) is None:
            pass
        for sighting, original in zip(sightings, originals, strict=True):
            if sighting is not None and original is not None and sighting.image_id in contents:
                contents[sighting.image_id] = ImageProblem(Reason.DUPLICATE_OF, original)
        return sightings


def _sighting(image_id: str, content: Content | None, kept: Sequence[Any]) -> Sighting | None:
    """The sighting of an image that was just read, or whose kept rows have its digest; None for any other image."""
    if isinstance(content, bytes) and content:
        return Sighting.of(image_id, content)
    digest = next((row.content_sha256 for row in kept if row.content_sha256), None)
    return Sighting(image_id, digest) if digest else None


def _expected_bytes(row: Any) -> int:
    num_bytes: int | None = getattr(row, "num_bytes", None)
    return _ASSUMED_BYTES if num_bytes is None else num_bytes
