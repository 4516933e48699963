"""Files of this machine and objects at s3://: listed in one fixed order, and read several at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote_to_bytes

from mpa_ray.config import ObjectStoreConfig, resolve_path
from mpa_ray.errors import ConfigError
from mpa_ray.records import ImageRef

_NUM_READERS = 16


@dataclass(frozen=True)
class Files:
    """Holds settings alone, so it can be sent to any process."""

    object_store: ObjectStoreConfig

    def walk(self, root: str) -> Iterator[ImageRef]:
        """All files below a folder or an s3:// prefix, by the UTF-8 bytes of their paths; nothing is read.

        Links are followed. A link to nothing is listed, too: reading it will say so.

        Raises:
            ConfigError: a folder cannot be listed.
        """
        if root.startswith("s3://"):
            yield from self._objects(root)
            return
        folder = Path(resolve_path(root)).absolute()
        if not folder.is_dir():
            raise ConfigError("source.path", root, "is not a folder.", "Give a folder or an s3:// prefix with images.")
        yield from _walk(folder, "", frozenset())

    def read(self, uris: Sequence[str]) -> list[tuple[bytes | None, str | None]]:
        """Each file's content or the error that kept it, in the order given."""
        with ThreadPoolExecutor(_NUM_READERS) as readers:
            return list(readers.map(self._read, uris))

    def _objects(self, root: str) -> Iterator[ImageRef]:
        # Only here, since boto3 takes a second to import.
        from mpa_ray.object_store import ObjectStore, split_uri

        bucket, prefix = split_uri(root.rstrip("/") + "/")
        try:
            for found in ObjectStore(self.object_store).list(bucket, prefix, nested=True):
                if not found.key.endswith("/"):
                    yield ImageRef(found.key.removeprefix(prefix), f"s3://{bucket}/{found.key}", found.num_bytes)
        except OSError as error:
            raise ConfigError("source.path", root, f"cannot be listed ({error}).",
                              "Check the bucket, object_store and your credentials.") from error  # fmt: skip

    def _read(self, uri: str) -> tuple[bytes | None, str | None]:
        try:
            return self._content(uri), None
        except OSError as error:
            return None, f"{type(error).__name__}: {error.strerror or error}"

    def _content(self, uri: str) -> bytes:
        if uri.startswith("s3://"):
            from mpa_ray.object_store import ObjectStore, split_uri

            return ObjectStore(self.object_store).get(*split_uri(uri))
        if uri.startswith("file://"):
            return Path(os.fsdecode(unquote_to_bytes(uri.removeprefix("file://")))).read_bytes()
        return Path(uri).read_bytes()


def _walk(folder: Path, path: str, above: frozenset[tuple[int, int]]) -> Iterator[ImageRef]:
    try:
        with os.scandir(folder) as scan:
            entries = {_text(entry.name) + "/" * entry.is_dir(): entry for entry in scan}
        place = folder.stat()
    except OSError as error:
        raise ConfigError("source.path", str(folder), f"cannot be listed ({error.strerror}).",
                          "Mend its permissions, or leave it out.") from error  # fmt: skip
    here = (place.st_dev, place.st_ino)
    if here in above:
        # A link back to a folder that we are in.
        return
    for name in sorted(entries, key=str.encode):
        entry = entries[name]
        if name.endswith("/"):
            yield from _walk(Path(entry.path), path + name, above | {here})
        elif entry.is_file() or entry.is_symlink():
            yield ImageRef(path + name, _uri(entry.path), entry.stat().st_size if entry.is_file() else None)


def _text(name: str) -> str:
    """A name that is not UTF-8 with its bytes percent-encoded; any other as it is."""
    return name if _is_text(name) else quote(os.fsencode(name))


def _uri(path: str) -> str:
    return path if _is_text(path) else Path(path).as_uri()


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
