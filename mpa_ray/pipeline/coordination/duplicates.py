"""Finds images with the same bytes as an earlier image of the corpus."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mpa_ray.corpus.dedup_index import DedupIndex
from mpa_ray.pipeline.coordination.turns import POLL_S, OrderedTurns


@dataclass(frozen=True)
class Sighting:
    """An image whose bytes have been read."""

    image_id: str
    content_sha256: str
    """In hexadecimal."""

    @classmethod
    def of(cls, image_id: str, content: bytes) -> Sighting:
        """Hash the bytes of an image."""
        return cls(image_id, hashlib.sha256(content).hexdigest())


class Duplicates:
    """The digests of all images of a pass.

    Shards add their digests in the order of the corpus. So an image can only be the duplicate of an earlier image of
    the corpus, no matter which image was read first, and even if other drivers work on the same run. The first of
    several equal images never counts as a duplicate.
    """

    def __init__(self, turns: OrderedTurns) -> None:
        self._turns = turns
        self._seen = DedupIndex()

    def add_committed(self, shard: str, sightings: Iterable[Sighting | None]) -> None:
        """Add the images of a shard that is already committed."""
        self._claim(shard, sightings)

    async def claim(
        self, shard: str, sightings: Sequence[Sighting | None], wait_s: float = POLL_S
    ) -> list[str | None] | None:
        """Add the images of a shard; None stands for an image that could not be read.

        Returns:
            For each image, the id of an earlier image with the same bytes, or None if there is no such image. If the
            shard's turn did not come within `wait_s` seconds, the result is None, and the caller must ask again.
        """
        if not await self._turns.wait(shard, wait_s):
            return None
        originals = self._claim(shard, sightings)
        await self._turns.finish(shard)
        return originals

    def _claim(self, shard: str, sightings: Iterable[Sighting | None]) -> list[str | None]:
        numbered = list(enumerate(sightings))
        claims = [
            (bytes.fromhex(sighting.content_sha256)[:16], (int(shard) << 32) + number, sighting.image_id)
            for number, sighting in numbered
            if sighting is not None
        ]
        originals = iter(self._seen.claim(claims))
        return [next(originals) if sighting is not None else None for _, sighting in numbered]
