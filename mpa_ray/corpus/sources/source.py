"""What indexing asks of a source, and what its kinds share."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import dropwhile
from pathlib import Path
from typing import Any, Protocol

from mpa_ray.config import SourceConfig
from mpa_ray.corpus.locator import Locator
from mpa_ray.corpus.ordered_prefetch import ordered_prefetch
from mpa_ray.corpus.places.place import Entry
from mpa_ray.corpus.places.places import Places
from mpa_ray.errors import ConfigError
from mpa_ray.records import ImageRef

_WILDCARD = re.compile(r"[*?\[]")


class Source(Protocol):
    """Images in a fixed order."""

    def images(self, after: ImageRef | None = None) -> Iterator[ImageRef]:
        """All images, or those behind one that was given before; their content is not read.

        Raises:
            ConfigError: the source cannot be listed, names something that is refused, or has changed such that it no
                longer holds `after`.
        """
        ...


@dataclass(frozen=True)
class Files:
    """The files below a root: a folder, a prefix, a glob, or one file by itself."""

    places: Places
    path: str
    endings: tuple[str, ...]
    """Lower case, with the dot; none takes every file that a glob names, or that is there."""
    num_listers: int = 1

    def entries(self, after: str = "") -> Iterator[Entry]:
        """By the UTF-8 bytes of their paths, from behind the path `after` on."""
        root, pattern = split_glob(self.path)
        if pattern is None and self.endings and self._is_file():
            yield from () if after else (self._file(),)
            return
        for entry in self.places.of(root).walk(root, after, self.num_listers):
            if pattern is not None and not pattern.fullmatch(entry.path):
                continue
            if not self.endings or entry.path.lower().endswith(self.endings):
                yield entry

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


def split_glob(path: str) -> tuple[str, re.Pattern[str] | None]:
    """The folder before a path's first wildcard and a pattern for the paths below it; the path and None without one.

    `*` and `?` stand for characters of one name, `**` for any number of folders, `[abc]` for one of these characters.
    """
    found = _WILDCARD.search(path)
    if found is None or Path(path).exists():
        return path, None
    root, _, _ = path[: found.start()].rpartition("/")
    rest = path[len(root) + 1 :] if root else path
    return root or ("/" if path.startswith("/") else "."), re.compile(_expression(rest), re.DOTALL)


def _expression(glob: str) -> str:
    tokens = re.compile(r"\*\*/|\*\*|\*|\?|\[[^\]]+\]|.", re.DOTALL)
    meaning = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}

    def regular(token: str) -> str:
        if len(token) > 1 and token.startswith("["):
            return "[" + token[1:-1].replace("\\", r"\\").replace("!", "^", token[1] == "!") + "]"
        return meaning.get(token) or re.escape(token)

    return "".join(map(regular, tokens.findall(glob)))


def in_containers(
    files: Files, images_in: Callable[[Entry], Iterator[ImageRef]], after: ImageRef | None
) -> Iterator[ImageRef]:
    """The images in each of many files, several of which are looked into at a time."""
    entries = files.entries()
    if after is not None:
        inside = Locator.parse(after.uri)
        if inside.span is not None or inside.row is not None:
            # Whole files before the one that `after` is in need not be opened.
            entries = dropwhile(lambda entry: entry.uri != inside.uri, entries)
    images = ordered_prefetch((partial(images_in, entry) for entry in entries), files.num_listers)
    return images if after is None else behind(images, after, files.path)


def behind(images: Iterator[ImageRef], last: ImageRef, path: str) -> Iterator[ImageRef]:
    """What follows the image `last`."""
    found = next((ref for ref in images if ref.image_id == last.image_id), None)
    if found is None:
        raise ConfigError(
            "source.path",
            path,
            f"no longer holds {last.image_id}, up to which it is indexed.",
            "Restore it, or begin anew in another run_dir.",
        )
    yield from images


@dataclass(frozen=True)
class UriPolicy:
    """Which files the entries of a list may name: who can write a list should not read this machine by it."""

    config: SourceConfig

    def uri(self, entry: str, container: str, where: str) -> str:
        """The locator of an entry of the file `container`, relative to which it may be.

        Raises:
            ConfigError: it names what is refused unless `source.allow` lists it; `where` tells the place of the entry.
        """
        scheme, separator, _ = entry.partition("://")
        is_remote = "://" in container and not container.startswith("file://")
        if separator and scheme in ("s3", "gs"):
            return str(Locator(entry))
        if separator and scheme in ("http", "https"):
            self._need("http", entry, where, "is fetched from the web")
        elif separator and scheme != "file":
            raise ConfigError(
                "source.path",
                self.config.path,
                f"{where}: {entry!r} is no kind of URI that is read.",
                "Use s3://, gs:// or paths.",
            )
        elif is_remote and (separator or entry.startswith("/")):
            self._need("local_files", entry, where, "is a file of this machine in a list from elsewhere")
        elif not separator and not entry.startswith("/"):
            self.below(entry, where)
            return str(Locator(f"{container.rpartition('/')[0] or '.'}/{entry}"))
        return str(Locator(entry))

    def below(self, path: str, where: str) -> None:
        """Raises ConfigError for a path that leads out of the folder that it is relative to."""
        if path.startswith("/") or ".." in path.split("/"):
            self._need("parent_folders", path, where, "leads out of its folder")

    def _need(self, permission: str, entry: str, where: str, why: str) -> None:
        if permission not in self.config.allow:
            raise ConfigError(
                "source.path",
                self.config.path,
                f"{where}: {entry!r} {why}, which is refused.",
                f"Leave it out, or add {permission!r} to source.allow.",
            )


@dataclass(frozen=True)
class Rows:
    """References to the images of a table's rows: their ids, and the columns that are carried along."""

    config: SourceConfig

    @property
    def columns(self) -> list[str]:
        """Columns that have to be read besides the image's."""
        return [*filter(None, [self.config.id_column]), *self.config.metadata]

    def check(self, names: list[str], where: str) -> None:
        """Raises ConfigError where a column that is asked for is not there."""
        asked = [("image_column", self.config.image_column), ("id_column", self.config.id_column)]
        asked += [("metadata", name) for name in self.config.metadata]
        for field, name in asked:
            if name is not None and name not in names:
                raise ConfigError(
                    f"source.{field}", name, f"is no column of {where}.", f"Choose from {', '.join(map(repr, names))}."
                )

    def ref(self, container: str, row: int, values: Mapping[str, Any], uri: str) -> ImageRef:
        """The reference to row number `row` of a file."""
        image_id = f"{container}/{row}"
        if self.config.id_column is not None:
            value = values.get(self.config.id_column)
            if value is None or value == "":
                raise ConfigError(
                    "source.id_column",
                    self.config.id_column,
                    f"is empty in {image_id}.",
                    "Fill it, or leave id_column out.",
                )
            image_id = str(value)
        return ImageRef(image_id, uri, None, carried({name: values.get(name) for name in self.config.metadata}))


def carried(metadata: Mapping[str, Any]) -> str | None:
    """Metadata as they travel with a row: a JSON object, or None where there are none."""
    return json.dumps(metadata, ensure_ascii=False, default=str) if metadata else None
