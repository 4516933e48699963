"""The manifest of a corpus or of a benchmark's questions."""

from __future__ import annotations

from dataclasses import dataclass, field

from mpa_ray.run.markers import shard_name


@dataclass(frozen=True)
class Manifest:
    """The size of the corpus, or of a benchmark. It is written once and never changes."""

    num_images: int
    num_shards: int
    left_out: dict[str, int] = field(default_factory=dict)
    """How many files of the source are not in the corpus, by ending or reason."""

    @property
    def shards(self) -> list[str]:
        """The names of all shards, in their order."""
        return [shard_name(i) for i in range(self.num_shards)]

    def estimate_images(self, num_shards: int) -> int:
        """Estimate the number of images in some of the shards, assuming that all shards have the same size."""
        return self.num_images * num_shards // self.num_shards if self.num_shards else 0
