"""Files on this machine, or in a folder that every node mounts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import dropwhile
from pathlib import Path
from urllib.parse import unquote_to_bytes

from mpa_ray.config import resolve_path
from mpa_ray.corpus.places.place import Entry
from mpa_ray.errors import ConfigError
from mpa_ray.textual import identifier, is_storable, readable


class LocalPlace:
    """Plain paths, and file:// URIs for paths that are not UTF-8."""

    def walk(self, root: str, after: str = "", num_listers: int = 1) -> Iterator[Entry]:  # noqa: ARG002
        """Symbolic links are followed. A broken link is listed too, and fails when it is read."""
        folder = Path(resolve_path(root)).absolute()
        if not folder.is_dir():
            raise ConfigError("source.path", root, "is not a folder.", "Give a folder or an s3:// prefix with images.")
        entries = _walk(folder, "", frozenset())
        return dropwhile(lambda e: e.path.encode() <= after.encode(), entries) if after else entries

    def size(self, uri: str) -> int:
        return _path(uri).stat().st_size

    def read(self, uri: str, first: int = 0, num_bytes: int | None = None) -> bytes:
        with _path(uri).open("rb", buffering=0) as file:
            file.seek(first)
            content: bytes | None = file.read(-1 if num_bytes is None else num_bytes)
        return content or b""


def _path(uri: str) -> Path:
    if uri.startswith("file://"):
        return Path(os.fsdecode(unquote_to_bytes(uri.removeprefix("file://"))))
    return Path(uri)


def _walk(folder: Path, path: str, parents: frozenset[tuple[int, int]]) -> Iterator[Entry]:
    try:
        with os.scandir(folder) as scan:
            entries = {identifier(entry.name) + "/" * entry.is_dir(): entry for entry in scan}
        status = folder.stat()
    except OSError as error:
        raise ConfigError(
            "source.path",
            str(folder),
            f"cannot be listed ({error.strerror}).",
            "Fix its permissions, or move it out of the source.",
        ) from error
    here = (status.st_dev, status.st_ino)
    if here in parents:
        # A link to a parent folder would recurse forever.
        return
    for name in sorted(entries, key=str.encode):
        entry = entries[name]
        if name.endswith("/"):
            yield from _walk(Path(entry.path), path + name, parents | {here})
        elif entry.is_file() or entry.is_symlink():
            yield Entry(path + name, storable_uri(entry.path), entry.stat().st_size if entry.is_file() else None)


def storable_uri(uri: str) -> str:
    """A path that is not UTF-8 as a file:// URI, and any other URI unchanged, if it can be stored in a run."""
    if is_storable(uri):
        return uri
    try:
        return Path(uri).absolute().as_uri() if "://" not in uri else readable(uri)
    except UnicodeEncodeError:
        # No file has such a name.
        return readable(uri)
