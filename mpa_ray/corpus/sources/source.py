"""The interface of a source of images, and the code that several kinds of source share."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import dropwhile
from pathlib import Path
from typing import Any, Protocol

from mpa_ray.config import SourceConfig, misspelled_uri
from mpa_ray.corpus.locator import Locator
from mpa_ray.corpus.ordered_prefetch import ordered_prefetch
from mpa_ray.corpus.places.local import storable_uri
from mpa_ray.corpus.places.place import Entry
from mpa_ray.corpus.places.places import Places
from mpa_ray.corpus.sources.columns import split_item
from mpa_ray.corpus.sources.globs import split_glob
from mpa_ray.corpus.sources.left_out import LeftOut, NameFilter, by_ending
from mpa_ray.errors import ConfigError
from mpa_ray.records import ImageRef
from mpa_ray.redaction import has_url_secrets, without_url_secrets, without_url_secrets_within
from mpa_ray.textual import identifier, to_json

Listed = ImageRef | LeftOut
"""An item of a source's listing: an image, or a file or row that is left out."""


class Source(Protocol):
    """Images in a fixed order."""

    def images(self, after: ImageRef | None = None) -> Iterator[Listed]:
        """Yield the images, starting after `after`, and the files left out between them. Does not read the images.

        Raises:
            ConfigError: the source cannot be listed, names a file that is not allowed, or no longer contains `after`.
        """
        ...


@dataclass(frozen=True)
class Files:
    """The files in a folder, below a prefix or matched by a glob, or a single file."""

    places: Places
    path: str
    endings: tuple[str, ...]
    """The endings to include, in lower case with the dot; empty includes every file."""
    num_listers: int = 1
    names: NameFilter = field(default_factory=NameFilter)
    """Applies to files of folders, prefixes and globs, not to a single file."""
    needs: dict[str, str] = field(default_factory=dict)
    """For each ending of files that cannot be read yet: the extra to install."""

    def entries(self) -> Iterator[Entry]:
        """Yield the files, sorted by the UTF-8 bytes of their paths."""
        return (entry for entry in self.listing() if isinstance(entry, Entry))

    def listing(self, after: str = "") -> Iterator[Entry | LeftOut]:
        """Yield the files, starting after the path `after`, and the files left out between them.

        Files that do not match the glob do not count as left out, because the user did not ask for them.
        """
        root, pattern = split_glob(self.path)
        if pattern is None and self.endings and self._is_file():
            yield from () if after else (self._file(),)
            return
        for entry in self.places.of(root).walk(root, after, self.num_listers):
            if pattern is None or pattern.fullmatch(entry.path) or entry.path.endswith("/"):
                yield self._left_out(entry) or entry

    def _left_out(self, entry: Entry) -> LeftOut | None:
        left_out = self.names.left_out(entry.path)
        if left_out is not None or entry.problem is not None:
            return left_out or LeftOut(str(entry.problem))
        if self.endings and not entry.path.lower().endswith(self.endings):
            return by_ending(entry.path, self.needs)
        return None

    def _file(self) -> Entry:
        try:
            return Entry(self.path.rpartition("/")[2], self.path, self.places.of(self.path).size(self.path))
        except OSError as error:
            raise ConfigError(
                "source.path",
                self.path,
                f"cannot be read ({error.strerror or error}).",
                "Check the path and your permissions.",
            ) from error

    def _is_file(self) -> bool:
        return self.path.lower().endswith(self.endings) and not Path(self.path).is_dir()


def images_of_containers(
    files: Files, images_in: Callable[[Entry], Iterator[Listed]], after: ImageRef | None
) -> Iterator[Listed]:
    """Yield the images in each of many files, such as tars. Several files are listed at a time."""
    entries = files.listing()
    if after is not None:
        inside = Locator.parse(after.uri)
        if inside.span is not None or inside.row is not None:
            # The files before the one that contains `after` need not be opened.
            entries = dropwhile(lambda entry: isinstance(entry, LeftOut) or entry.uri != inside.uri, entries)
    images = ordered_prefetch(
        (partial(iter, (e,)) if isinstance(e, LeftOut) else partial(images_in, e) for e in entries), files.num_listers
    )
    return images if after is None else images_after(images, after, files.path)


def images_after(listed: Iterator[Listed], last: ImageRef, path: str) -> Iterator[Listed]:
    """Yield the items that follow the image `last`. Raises ConfigError if `last` is not among the images."""
    if not any(isinstance(item, ImageRef) and item.image_id == last.image_id for item in listed):
        raise ConfigError(
            "source.path",
            path,
            f"no longer contains {last.image_id}, the last image that was indexed.",
            "Restore it, or start again in another run_dir.",
        )
    yield from listed


@dataclass(frozen=True)
class UriPolicy:
    """Checks which files the entries of a list name, so that the author of a list cannot make a run read this machine's
    files."""

    config: SourceConfig

    def uri(self, entry: str, container: str, where: str) -> str:
        """Return the locator of an entry.

        Args:
            entry: A URI or a path; a relative path is relative to the folder of the container.
            container: The list, Parquet file or tar that contains the entry.
            where: The position of the entry in the container, for the error message.

        Raises:
            ConfigError: `source.allow` does not permit the entry, or its kind of URI is not supported.
        """
        if (right := misspelled_uri(entry)) is not None:
            raise ConfigError("source.path", self.config.path, f"{where}: {entry!r} is misspelled.", f"Write {right}.")
        scheme, separator, _ = entry.partition("://")
        self.check_secrets(entry, where)
        is_remote = "://" in container and not container.startswith("file://")
        if separator and scheme in ("s3", "gs"):
            return str(Locator(storable_uri(entry)))
        if separator and scheme in ("http", "https"):
            self._need("http", entry, where, "would be fetched from the web")
        elif separator and scheme != "file":
            raise ConfigError(
                "source.path",
                self.config.path,
                f"{where}: {entry!r} is a URI of an unsupported kind.",
                "Use s3://, gs:// or paths.",
            )
        elif is_remote and (separator or entry.startswith("/")):
            self._need("local_files", entry, where, "is a local file in a remote list")
        elif not separator and not entry.startswith("/"):
            self.check_below(entry, where)
            return str(Locator(storable_uri(f"{container.rpartition('/')[0] or '.'}/{entry}")))
        return str(Locator(storable_uri(entry)))

    def check_secrets(self, text: str, where: str) -> None:
        """Raise ConfigError for a URL with a password or a signature, unless `source.allow` permits it. The run would
        store the URL in its rows."""
        if "://" in text and has_url_secrets(text):
            self._need("signed_urls", text, where, "contains a password or a signature")

    def check_below(self, path: str, where: str) -> None:
        """Raise ConfigError if a relative path leads out of its folder, unless `source.allow` permits it."""
        if path.startswith("/") or ".." in path.split("/"):
            self._need("parent_folders", path, where, "leads out of its folder")

    def _need(self, permission: str, entry: str, where: str, why: str) -> None:
        if permission not in self.config.allow:
            raise ConfigError(
                "source.path",
                self.config.path,
                f"{where}: {entry!r} {why}, which is not allowed.",
                f"Remove it, or add {permission!r} to source.allow.",
            )


@dataclass(frozen=True)
class Rows:
    """Makes references to the images in a table's rows, with their ids and metadata."""

    config: SourceConfig

    @property
    def columns(self) -> list[str]:
        """The columns to read in addition to the image column."""
        return [*filter(None, [self.config.id_column]), *self.config.metadata]

    def check(self, names: Sequence[str], where: str, image_column: str | None = None) -> None:
        """Raise ConfigError if a configured column is missing or occurs twice.

        If `image_column` is given, it replaces `source.image_column`.
        """
        columns = [("image_column", image_column or self.config.image_column), ("id_column", self.config.id_column)]
        columns += [("metadata", name) for name in self.config.metadata]
        for setting, name in columns:
            column = split_item(name, names)[0] if name is not None and setting == "image_column" else name
            if column is not None and names.count(column) > 1:
                raise ConfigError(
                    f"source.{setting}",
                    name,
                    f"is the name of several columns of {where}.",
                    "Rename them, so that each name occurs once.",
                )
            if column is not None and column not in names:
                raise ConfigError(
                    f"source.{setting}",
                    name,
                    f"is not a column of {where}.",
                    f"Choose from {', '.join(map(repr, names))}.",
                )

    def ref(self, container: str, row: int, values: Mapping[str, Any], uri: str, part: int = 0) -> ImageRef:
        """Return the reference to the image in row number `row` of a container; `part` is the number of the image in
        its row, counted from 0."""
        suffix = f".{part}" if part else ""
        image_id = f"{container}/{row}{suffix}"
        if self.config.id_column is not None:
            value = values.get(self.config.id_column)
            if value is None or value == "":
                raise ConfigError(
                    "source.id_column",
                    self.config.id_column,
                    f"is empty in {image_id}.",
                    "Fill the column, or leave id_column out.",
                )
            UriPolicy(self.config).check_secrets(str(value), image_id)
            image_id = identifier(str(value)) + suffix
        return ImageRef(image_id, uri, None, metadata_json({name: values.get(name) for name in self.config.metadata}))


def metadata_json(metadata: Mapping[str, Any]) -> str | None:
    """Return metadata in the form in which rows store it: a JSON object without passwords and signatures. Return None
    if there is no metadata."""
    if not metadata:
        return None
    text = to_json(metadata)
    return text if without_url_secrets(text) == text else to_json(without_url_secrets_within(json.loads(text)))
