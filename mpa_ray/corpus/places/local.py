"""Files on this machine, or in a folder that every node mounts."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import dropwhile
from pathlib import Path
from urllib.parse import unquote_to_bytes

from mpa_ray.config import resolve_path
from mpa_ray.config.regular_file import open_regular_file, size_of_regular_file
from mpa_ray.corpus.places.place import Entry
from mpa_ray.errors import ConfigError, did_you_mean
from mpa_ray.run.run_folder import is_run_folder
from mpa_ray.textual import identifier, is_storable, readable

_FolderKey = tuple[int, int]
"""A folder's device and inode."""


class LocalPlace:
    """Local files. Their URIs are plain paths, or file:// URIs if a path is not UTF-8."""

    def walk(self, root: str, after: str = "", num_listers: int = 1) -> Iterator[Entry]:  # noqa: ARG002
        """See `Place.walk`. Symbolic links are followed. Broken links are listed, too; reading a broken link fails."""
        folder = Path(resolve_path(root)).absolute()
        if not folder.is_dir():
            raise _no_folder(folder, root)
        entries = _walk(folder)
        return dropwhile(lambda e: e.path.encode() <= after.encode(), entries) if after else entries

    def size(self, uri: str) -> int:
        return size_of_regular_file(_path(uri))

    def read(self, uri: str, first: int = 0, num_bytes: int | None = None) -> bytes:
        with open_regular_file(_path(uri)) as file:
            file.seek(first)
            if num_bytes is None:
                return file.readall()
            content = b""
            # One call reads at most 2 GiB, and may read less.
            while chunk := file.read(num_bytes - len(content)):
                content = content + chunk if content else chunk
        return content


def _no_folder(path: Path, root: str) -> ConfigError:
    if path.exists():
        problem = "is a file of a kind that cannot hold images."
        remedy = "Give a folder, an image, a list (.txt, .csv, .tsv, .jsonl, .json), Parquet files or tars."
        return ConfigError("source.path", root, problem, remedy)
    names = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
    similar = did_you_mean(path.name, names)
    if "$" in root:
        similar = "Environment variables are not replaced: write the whole path."
    remedy = similar or "Give a folder or an s3:// prefix with images."
    return ConfigError("source.path", root, "does not exist.", remedy)


def _path(uri: str) -> Path:
    if uri.startswith("file://"):
        return Path(os.fsdecode(unquote_to_bytes(uri.removeprefix("file://"))))
    return Path(uri)


def _walk(root: Path) -> Iterator[Entry]:
    return _Walk(set()).entries(root, "", frozenset())


@dataclass(frozen=True)
class _Walk:
    """Lists a folder and all folders below it. The listing ends even if symbolic links form circles."""

    linked: set[_FolderKey]
    """The folders that links have pointed to. Only the first link to a folder is followed, because n folders with links
    to each other would have n! paths."""

    def entries(self, folder: Path, path: str, parents: frozenset[_FolderKey]) -> Iterator[Entry]:
        try:
            with os.scandir(folder) as scan:
                entries = {identifier(entry.name) + "/" * _is_folder(entry): entry for entry in scan}
            here = _folder_key(folder.stat())
        except OSError as error:
            if path:
                yield _problem(path, folder, f"unreadable folders ({error.strerror})")
                return
            raise ConfigError(
                "source.path",
                str(folder),
                f"cannot be listed ({error.strerror}).",
                "Fix its permissions, or give another folder.",
            ) from error
        for name in sorted(entries, key=str.encode):
            entry = entries[name]
            if not name.endswith("/"):
                yield _file(entry, path + name)
            elif entry.is_symlink() and self._is_repeated(entry, parents | {here}):
                yield _problem(path + name, Path(entry.path), "linked folders (listed elsewhere)")
            elif is_run_folder(entry.path):
                yield _problem(path + name, Path(entry.path), "folders of runs (with a run.json)")
            else:
                yield from self.entries(Path(entry.path), path + name, parents | {here})

    def _is_repeated(self, link: os.DirEntry[str], parents: frozenset[_FolderKey]) -> bool:
        """Whether a link points to a folder above it, or to the same folder as an earlier link."""
        try:
            target = _folder_key(link.stat())
        except OSError:
            # The error is reported when the folder is listed.
            return False
        if target in parents or target in self.linked:
            return True
        self.linked.add(target)
        return False


def _folder_key(status: os.stat_result) -> _FolderKey:
    return status.st_dev, status.st_ino


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        # The entry is a link that points to itself, or into a folder that this user cannot read.
        return False


def _file(entry: os.DirEntry[str], path: str) -> Entry:
    """Return the entry of a file, a link to a file, or a device. The entry of a broken link has no size, and reading it
    fails."""
    try:
        status = entry.stat()
    except OSError as error:
        if entry.is_symlink():
            return Entry(path, storable_uri(entry.path), None)
        return _problem(path, Path(entry.path), f"unreadable ({error.strerror})")
    if not stat.S_ISREG(status.st_mode):
        return _problem(path, Path(entry.path), "pipes, sockets and devices")
    return Entry(path, storable_uri(entry.path), status.st_size)


def _problem(path: str, file: Path, problem: str) -> Entry:
    return Entry(path, storable_uri(str(file)), None, problem)


def storable_uri(uri: str) -> str:
    """Return a URI in a form that a run can store. A local path that is not UTF-8 becomes a file:// URI."""
    if is_storable(uri):
        return uri
    try:
        return Path(uri).absolute().as_uri() if "://" not in uri else readable(uri)
    except UnicodeEncodeError:
        # The path cannot be the name of a file, because it cannot be encoded.
        return readable(uri)
