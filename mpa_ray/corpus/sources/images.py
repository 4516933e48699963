"""A source of image files: a folder, a prefix or a glob."""

from __future__ import annotations

from collections.abc import Iterator

from mpa_ray.config import SourceConfig
from mpa_ray.corpus.locator import Locator
from mpa_ray.corpus.places.places import Places
from mpa_ray.corpus.sources.source import Files
from mpa_ray.records import ImageRef


class ImageFiles:
    """Image files below a root. The id of an image is its path below the root."""

    def __init__(self, config: SourceConfig, places: Places) -> None:
        self._files = Files(places, config.path, image_endings(config), config.num_listers)

    def images(self, after: ImageRef | None = None) -> Iterator[ImageRef]:
        """See `Source.images`. A file that was added later is listed if its path sorts after `after`."""
        for entry in self._files.entries(after.image_id if after else ""):
            yield ImageRef(entry.path, str(Locator(entry.uri)), entry.num_bytes)


def image_endings(config: SourceConfig) -> tuple[str, ...]:
    """The file name endings of images, in lower case with the dot."""
    return tuple(f".{ending.lower().lstrip('.')}" for ending in config.extensions)
