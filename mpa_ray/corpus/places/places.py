"""Finds the place of a URI: the disk, object store or web server that holds the file."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, cast

from mpa_ray.config import ObjectStoreConfig
from mpa_ray.corpus.places.place import Entry, Place
from mpa_ray.storage.deadline import call_with_deadline

_BUFFER_BYTES = 2**20


@dataclass(frozen=True)
class Places:
    """Finds the place of any supported URI, and opens files. Holds only settings, so it can be sent to any process."""

    object_store: ObjectStoreConfig
    follow_redirects: bool = True
    """Whether a web server may redirect to another host. For images, `source.allow` decides this."""

    def of(self, uri: str) -> Place:
        """Return the place that stores a URI or a local path.

        Each read from this place raises TimeoutError after `object_store.read_deadline_s` seconds.
        """
        return _WithDeadline(self._place(uri), self.object_store.read_deadline_s)

    def _place(self, uri: str) -> Place:
        # boto3 and pyarrow's file systems take a second to import.
        match uri.partition("://"):
            case ("s3", _, _):
                from mpa_ray.corpus.places.s3 import S3Place

                return S3Place(self.object_store)
            case ("gs", _, _):
                from mpa_ray.corpus.places.gcs import cloud_storage

                return cloud_storage(self.object_store, uri)
            case (("http" | "https"), _, _):
                from mpa_ray.corpus.places.web import Web

                return Web(self.object_store, self.follow_redirects)
            case ("synthetic", _, _):
                from mpa_ray.corpus.places.synthetic import Synthetic

                return Synthetic()
            case _:
                from mpa_ray.corpus.places.local import LocalPlace

                return LocalPlace()

    def open(self, uri: str) -> BinaryIO:
        """Open a file for seeking. Only the parts that the caller reads are fetched, at least 1 MiB at a time."""
        return cast(BinaryIO, io.BufferedReader(_RangeFile(self.of(uri), uri), _BUFFER_BYTES))


@dataclass(frozen=True)
class _WithDeadline:
    """A place whose reads end at a deadline."""

    place: Place
    deadline_s: float

    def walk(self, root: str, after: str = "", num_listers: int = 1) -> Iterator[Entry]:
        return self.place.walk(root, after, num_listers)

    def size(self, uri: str) -> int:
        return call_with_deadline(lambda: self.place.size(uri), self.deadline_s, uri)

    def read(self, uri: str, first: int = 0, num_bytes: int | None = None) -> bytes:
        if num_bytes == 0:
            # HTTP cannot express an empty range: servers would send the whole file.
            return b""
        return call_with_deadline(lambda: self.place.read(uri, first, num_bytes), self.deadline_s, uri)


class _RangeFile(io.RawIOBase):
    """A Python file object that reads byte ranges of a place's file."""

    def __init__(self, place: Place, uri: str) -> None:
        self._place, self._uri = place, uri
        self._size = place.size(uri)
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: object) -> int:
        view = memoryview(cast(bytearray, buffer)).cast("B")
        num_bytes = min(len(view), self._size - self._position)
        if num_bytes <= 0:
            return 0
        content = self._place.read(self._uri, self._position, num_bytes)[:num_bytes]
        view[: len(content)] = content
        self._position += len(content)
        return len(content)
