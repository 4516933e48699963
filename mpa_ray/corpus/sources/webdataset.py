"""A source of tars in WebDataset format: the members of a sample are adjacent and share their stem."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from posixpath import join, normpath
from typing import Any

from mpa_ray.config import SourceConfig
from mpa_ray.corpus.locator import Locator, Span
from mpa_ray.corpus.places.place import Entry
from mpa_ray.corpus.places.places import Places
from mpa_ray.corpus.sources.damage import unreadable, without_damaged
from mpa_ray.corpus.sources.images import image_endings
from mpa_ray.corpus.sources.left_out import LeftOut, NameFilter, by_ending
from mpa_ray.corpus.sources.source import Files, Listed, UriPolicy, images_of_containers, metadata_json
from mpa_ray.corpus.sources.tar import DamagedTar, Kind, Member, TarReader
from mpa_ray.errors import ConfigError
from mpa_ray.records import ImageRef
from mpa_ray.textual import identifier, parse_json

ENDINGS = (".tar",)
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_MAX_METADATA_BYTES = 2**20
_LINKS = (Kind.HARD_LINK, Kind.SYMLINK)


class WebDataset:
    """Images in tars. The id of an image is the tar's path and the member's name. The image's locator contains its byte
    range in the tar."""

    def __init__(self, config: SourceConfig, places: Places) -> None:
        if config.path.lower().endswith(_COMPRESSED):
            raise ConfigError(
                "source.path",
                config.path,
                "is compressed, so its images cannot be read separately.",
                "Decompress it to plain .tar files.",
            )
        self._config, self._places = config, places
        self._names = NameFilter.of(config)
        self._uri_policy = UriPolicy(config)
        self._image_endings = image_endings(config)
        self._files = Files(places, config.path, ENDINGS, config.num_listers, self._names)

    def images(self, after: ImageRef | None = None) -> Iterator[Listed]:
        return images_of_containers(self._files, self._images_in, after)

    def _images_in(self, entry: Entry) -> Iterator[Listed]:
        return without_damaged(self._config, entry.path, self._listing(entry))

    def _listing(self, entry: Entry) -> Iterator[Listed]:
        try:
            with self._places.open(entry.uri) as content:
                yield from self._images_of(TarReader(content, content.seek(0, io.SEEK_END)), entry)
        except (OSError, DamagedTar) as error:
            raise unreadable(self._config, entry.path, entry.uri, "a tar", error) from error

    def _images_of(self, tar: TarReader, entry: Entry) -> Iterator[Listed]:
        images = _Images()
        for (_, stem), members in groupby(tar.members(), key=lambda member: (member.archive, _stem(member.name))):
            yield from self._images_of_sample(tar, stem, members, images, entry)
        if not tar.has_end:
            yield LeftOut("ends of tars that may be truncated (no end mark)")

    def _images_of_sample(
        self, tar: TarReader, stem: str, members: Iterator[Member], images: _Images, entry: Entry
    ) -> Iterator[Listed]:
        files: list[tuple[str, Span]] = []
        left_out: list[LeftOut] = []
        others: list[LeftOut] = []
        parts: dict[str, bytes | None] = {}
        for member in members:
            if self._is_wanted(member, stem):
                is_small = member.num_bytes <= _MAX_METADATA_BYTES
                parts[_part(member.name, stem)] = tar.content(member) if is_small else None
            if member.kind is Kind.FOLDER:
                continue
            if not self._image_endings or member.name.lower().endswith(self._image_endings):
                file = self._image(member, images, entry)
                if isinstance(file, LeftOut):
                    left_out.append(file)
                else:
                    files.append(file)
            else:
                others.append(self._names.left_out(member.name) or by_ending(member.name))
        # If a sample has images, its other members describe them and are not left out.
        yield from left_out if files else [*left_out, *others]
        metadata, bad = self._metadata(parts)
        yield from bad
        for name, span in files:
            yield ImageRef(f"{entry.path}/{name}", str(Locator(entry.uri, span)), span.num_bytes, metadata)

    def _image(self, member: Member, images: _Images, entry: Entry) -> tuple[str, Span] | LeftOut:
        """Return the name and the byte range of an image, or a `LeftOut` if the image is left out."""
        left_out = self._names.left_out(member.name)
        if left_out is not None:
            return left_out
        self._uri_policy.check_below(member.name, entry.path)
        if member.kind in _LINKS:
            span = images.target_of(member)
            if span is None:
                return LeftOut(f"{member.kind.value} (to no image before them in the tar)")
            return images.add(member, span)
        if member.kind is not Kind.FILE:
            return LeftOut(f"{member.kind.value} (in tars)")
        return images.add(member, Span(member.first, member.num_bytes))

    def _is_wanted(self, member: Member, stem: str) -> bool:
        """Whether the member may hold metadata that `source.metadata` names."""
        names = self._config.metadata
        return bool(names) and member.kind is Kind.FILE and _part(member.name, stem) in ("json", *names)

    def _metadata(self, parts: dict[str, bytes | None]) -> tuple[str | None, list[LeftOut]]:
        """Return the metadata of a sample, and the members among `parts` that cannot be used.

        Args:
            parts: The content of members by their endings; None if the content is too large.
        """
        if not self._config.metadata:
            return None, []
        texts = {
            name: content.decode(errors="backslashreplace") for name, content in parts.items() if content is not None
        }
        left_out = [LeftOut(f".{name} (metadata larger than 1 MiB)") for name in parts if name not in texts]
        keys: dict[str, Any] = {}
        if "json" in texts:
            try:
                document = parse_json(texts["json"])
            except ValueError:
                left_out.append(LeftOut(".json (damaged metadata)"))
            else:
                keys = document if isinstance(document, dict) else {}
        return metadata_json({name: texts.get(name, keys.get(name)) for name in self._config.metadata}), left_out


@dataclass(frozen=True)
class _Images:
    """The images of a tar that have been listed so far."""

    names: set[str] = field(default_factory=set)
    spans: dict[str, Span] = field(default_factory=dict)
    """The byte range of each image, by its path."""

    def add(self, member: Member, span: Span) -> tuple[str, Span]:
        """Add an image. Returns a unique name for the image, and its byte range."""
        self.spans[normpath(member.name)] = span
        name = identifier(member.name)
        while name in self.names:
            # A tar with appended members may contain a name twice.
            name = f"{name}@{member.first}"
        self.names.add(name)
        return name, span

    def target_of(self, link: Member) -> Span | None:
        """Return the byte range of the image that a link points to; None if it points to none of these images."""
        folder = link.name.rpartition("/")[0] if link.kind is Kind.SYMLINK else ""
        return self.spans.get(normpath(join(folder, link.target)))


def _stem(name: str) -> str:
    """A member's name up to the first dot after the last slash."""
    folder, slash, last = name.rpartition("/")
    return folder + slash + last.partition(".")[0]


def _part(name: str, stem: str) -> str:
    return name.removeprefix(f"{stem}.")
