"""Finds the place, such as a disk or an object store, that holds the file of a URI."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import BinaryIO, cast

from mpa_ray.config import ObjectStoreConfig
from mpa_ray.corpus.places.place import Place

_BUFFER_BYTES = 2**20


@dataclass(frozen=True)
class Places:
    """Finds the place of any supported URI, and opens files. Holds only settings, so it can be sent to any process."""

    object_store: ObjectStoreConfig

    def of(self, uri: str) -> Place:
        """Return the place that stores a URI or a local path."""
        # boto3 and pyarrow's file systems take a second to import.
        match uri.partition("://"):
            case ("s3", _, _):
                from mpa_ray.corpus.places.s3 import S3Place

                return S3Place(self.object_store)
            case ("gs", _, _):
                from mpa_ray.corpus.places.gcs import cloud_storage

                return cloud_storage()
            case (("http" | "https"), _, _):
                from mpa_ray.corpus.places.web import Web

                return Web(self.object_store)
            case ("synthetic", _, _):
                from mpa_ray.corpus.places.synthetic import Synthetic

                return Synthetic()
            case _:
                from mpa_ray.corpus.places.local import LocalPlace

                return LocalPlace()

    def open(self, uri: str) -> BinaryIO:
        """Open a file for seeking. Only the parts that are read are fetched, at least 1 MiB at a time."""
        return cast(BinaryIO, io.BufferedReader(_RangeFile(self.of(uri), uri), _BUFFER_BYTES))


class _RangeFile(io.RawIOBase):
    """A Python file object over a place's range reads."""

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
        content = self._place.read(self._uri, self._position, num_bytes)
        view[: len(content)] = content
        self._position += len(content)
        return len(content)
