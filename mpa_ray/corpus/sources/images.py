"""A source of image files: a folder, a prefix or a glob."""

from __future__ import annotations

from collections.abc import Iterator

from mpa_ray.config import DEFAULT_EXTENSIONS, SourceConfig
from mpa_ray.corpus.locator import Locator
from mpa_ray.corpus.places.places import Places
from mpa_ray.corpus.sources.left_out import LeftOut, NameFilter
from mpa_ray.corpus.sources.source import Files, Listed
from mpa_ray.errors import ConfigError
from mpa_ray.imaging.formats import HEIC_ENDINGS, HEIC_EXTRA, reads_heic
from mpa_ray.records import ImageRef


class ImageFiles:
    """Image files below a root. The id of an image is its path below the root."""

    def __init__(self, config: SourceConfig, places: Places) -> None:
        self._files = Files(
            places, config.path, image_endings(config), config.num_listers, NameFilter.of(config), missing_readers()
        )

    def images(self, after: ImageRef | None = None) -> Iterator[Listed]:
        """See `Source.images`. A file that was added after indexing began is listed only if its path sorts after
        `after`."""
        for entry in self._files.listing(after.image_id if after else ""):
            if isinstance(entry, LeftOut):
                yield entry
            else:
                yield ImageRef(entry.path, str(Locator(entry.uri)), entry.num_bytes)


def image_endings(config: SourceConfig) -> tuple[str, ...]:
    """The file name endings of images, in lower case with the dot.

    Raises:
        ConfigError: `source.extensions` names an ending whose decoder is not installed.
    """
    endings = tuple(f".{ending.lower().lstrip('.')}" for ending in config.extensions)
    if config.extensions == DEFAULT_EXTENSIONS:
        return (*endings, *HEIC_ENDINGS) if reads_heic() else endings
    if unread := [ending for ending in endings if ending in missing_readers()]:
        raise ConfigError(
            "source.extensions",
            unread[0].lstrip("."),
            "needs the package pi-heif, which is not installed.",
            "Run pip install pi-heif on every node.",
        )
    return endings


def missing_readers() -> dict[str, str]:
    """Return the file name endings of images that cannot be read, each with the extra that must be installed."""
    return {} if reads_heic() else dict.fromkeys(HEIC_ENDINGS, HEIC_EXTRA)
