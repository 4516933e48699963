"""A source of tars in WebDataset format: the members of a sample are adjacent and share their stem."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from itertools import groupby
from typing import Any

from mpa_ray.config import SourceConfig
from mpa_ray.corpus.locator import Locator, Span
from mpa_ray.corpus.places.place import Entry
from mpa_ray.corpus.places.places import Places
from mpa_ray.corpus.sources.images import image_endings
from mpa_ray.corpus.sources.source import Files, UriPolicy, images_of_containers, metadata_json
from mpa_ray.errors import ConfigError
from mpa_ray.records import ImageRef
from mpa_ray.textual import identifier, parse_json

ENDINGS = (".tar",)
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_MAX_METADATA_BYTES = 2**20


class WebDataset:
    """Images in tars. The id of an image is the tar's path and the member's name; its locator gives its bytes."""

    def __init__(self, config: SourceConfig, places: Places) -> None:
        if config.path.lower().endswith(_COMPRESSED):
            raise ConfigError(
                "source.path",
                config.path,
                "is compressed, so its images cannot be read separately.",
                "Decompress it to plain .tar files.",
            )
        self._config, self._places = config, places
        self._uri_policy = UriPolicy(config)
        self._image_endings = image_endings(config)
        self._files = Files(places, config.path, ENDINGS, config.num_listers)

    def images(self, after: ImageRef | None = None) -> Iterator[ImageRef]:
        return images_of_containers(self._files, self._images_in, after)

    def _images_in(self, entry: Entry) -> Iterator[ImageRef]:
        try:
            with self._places.open(entry.uri) as content, tarfile.open(fileobj=content, mode="r:") as tar:
                seen: set[str] = set()
                for _, members in groupby(self._members(tar, entry), key=lambda member: _stem(member.name)):
                    yield from self._images_of(tar, list(members), entry, seen)
        except (OSError, ValueError, tarfile.TarError) as error:
            raise ConfigError(
                "source.path",
                self._config.path,
                f"{entry.path} cannot be read as a tar ({error}).",
                "Repair the file, or remove it from the source.",
            ) from error

    def _members(self, tar: tarfile.TarFile, entry: Entry) -> Iterator[tarfile.TarInfo]:
        for member in tar:
            # tarfile keeps every member in memory.
            tar.members = []  # type: ignore[attr-defined]
            if member.isfile() and not member.issparse():
                self._uri_policy.check_below(member.name, entry.path)
                yield member

    def _images_of(
        self, tar: tarfile.TarFile, members: list[tarfile.TarInfo], entry: Entry, seen: set[str]
    ) -> Iterator[ImageRef]:
        metadata = self._metadata(tar, members)
        for member in members:
            if self._image_endings and not member.name.lower().endswith(self._image_endings):
                continue
            # A tar with appended members may contain a name twice.
            name = f"{member.name}@{member.offset_data}" if member.name in seen else member.name
            seen.add(name)
            span = Span(member.offset_data, member.size)
            yield ImageRef(f"{entry.path}/{identifier(name)}", str(Locator(entry.uri, span)), member.size, metadata)

    def _metadata(self, tar: tarfile.TarFile, members: list[tarfile.TarInfo]) -> str | None:
        if not self._config.metadata:
            return None
        parts = {m.name.removeprefix(_stem(m.name) + "."): m for m in members if m.size <= _MAX_METADATA_BYTES}
        keys: dict[str, Any] = {}
        if "json" in parts:
            content = parse_json(_text(tar, parts["json"]))
            keys = content if isinstance(content, dict) else {}
        return metadata_json(
            {name: _text(tar, parts[name]) if name in parts else keys.get(name) for name in self._config.metadata}
        )


def _stem(name: str) -> str:
    """A member's name up to the first dot after the last slash."""
    folder, slash, last = name.rpartition("/")
    return folder + slash + last.partition(".")[0]


def _text(tar: tarfile.TarFile, member: tarfile.TarInfo) -> str:
    content = tar.extractfile(member)
    return content.read().decode(errors="backslashreplace") if content else ""
