"""The first operators of a graph: list the shards, then read each shard's rows and image files."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import ray

from mpa_ray.corpus.read import Content
from mpa_ray.imaging.decode import ImageProblem
from mpa_ray.observability.last_words import in_words
from mpa_ray.observability.log_context import log_context
from mpa_ray.observability.usage import Usage
from mpa_ray.pipeline.coordination.duplicates import Sighting
from mpa_ray.pipeline.deaths import current_process
from mpa_ray.pipeline.graph_rows import FetchedShard, encode
from mpa_ray.pipeline.pass_spec import Pass
from mpa_ray.records import Reason
from mpa_ray.stages.image_work import ImageWork

_ASSUMED_BYTES = 2**20
"""The assumed size of a file if its source does not list sizes."""


@dataclass(frozen=True)
class NameShards:
    """The first rows of a graph: the coordinator's shards in their order, each as soon as it is known."""

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
        shard, started = row["shard"], time.monotonic()
        with log_context(**self.work.log_fields, shard=shard):
            process = current_process("task that reads a shard")
            if failure := ray.get(self.coordinator.begin_fetch.remote(shard, process)):
                return encode(FetchedShard(shard, [], Usage(), failure=failure))
            try:
                images = self._images(shard)
            except (OSError, ValueError, MemoryError) as error:
                # The run is at fault and not an image: rows of an earlier phase are missing or damaged.
                return encode(FetchedShard(shard, [], Usage(), failure=f"{in_words(error)}."))
        num_bytes = sum(len(image.content) for image in images if isinstance(image.content, bytes))
        return encode(FetchedShard(shard, images, Usage(num_bytes_read=num_bytes, read_s=time.monotonic() - started)))

    def _images(self, shard: str) -> list[ImageWork[Any]]:
        groups = [tuple(rows) for _, rows in groupby(self.work.source.read(shard), key=lambda row: row.image_id)]
        needed = [group for group in groups if any(map(self.work.needs_image, group))]
        expected = sum(_expected_bytes(group[0]) for group in needed)
        while not ray.get(self.coordinator.acquire_bytes.remote(shard, expected)):
            pass
        files = self.work.reader.read([group[0].uri for group in needed])
        contents = dict(zip((group[0].image_id for group in needed), files, strict=True))
        sightings = self._mark_duplicates(shard, groups, contents)
        read = (content for content in contents.values() if isinstance(content, bytes))
        ray.get(self.coordinator.end_fetch.remote(shard, sum(map(len, read))))
        return [
            ImageWork(
                image_id=group[0].image_id,
                uri=group[0].uri,
                rows=group,
                content=contents.get(group[0].image_id),
                content_sha256=sighting.content_sha256 if sighting else None,
            )
            for group, sighting in zip(groups, sightings, strict=True)
        ]

    def _mark_duplicates(
        self, shard: str, groups: list[tuple[Any, ...]], contents: dict[str, Content]
    ) -> list[Sighting | None]:
        """Hash the files that were read, and replace the content of each duplicate by a reason.

        Returns:
            A sighting of each group's image, or None if its file could not be read.
        """
        if self.work.deduplicated is None:
            return [None] * len(groups)
        files = ((group[0].image_id, contents.get(group[0].image_id)) for group in groups)
        sightings = [
            Sighting.of(image_id, content) if isinstance(content, bytes) and content else None
            for image_id, content in files
        ]
        while (originals := ray.get(self.coordinator.claim_images.remote(shard, sightings))) is None:
            pass
        for sighting, original in zip(sightings, originals, strict=True):
            if sighting is not None and original is not None:
                contents[sighting.image_id] = ImageProblem(Reason.DUPLICATE_OF, original)
        return sightings


def _expected_bytes(row: Any) -> int:
    num_bytes: int | None = getattr(row, "num_bytes", None)
    return _ASSUMED_BYTES if num_bytes is None else num_bytes
