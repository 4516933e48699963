"""What the corpus asks of a place that holds files, and which place a URI is in."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Protocol, cast

from mpa_ray.config import ObjectStoreConfig

_READ_AHEAD = 2**20


@dataclass(frozen=True)
class Entry:
    """A file as listing shows it."""

    path: str
    """Below the root that was listed, with forward slashes."""
    uri: str
    num_bytes: int | None


class Place(Protocol):
    """Files by URI, in whole or in part."""

    def walk(self, root: str, after: str = "", num_listers: int = 1) -> Iterator[Entry]:
        """All files below a root by the UTF-8 bytes of their paths, from behind the path `after` on.

        Raises:
            ConfigError: it cannot be listed.
        """
        ...

    def size(self, uri: str) -> int:
        """The file's bytes. Raises OSError."""
        ...

    def read(self, uri: str, first: int = 0, num_bytes: int | None = None) -> bytes:
        """The file's content from byte `first` on, `num_bytes` of it or less where it ends earlier.

        Raises:
            OSError: there is no such file, or it could not be read.
        """
        ...


@dataclass(frozen=True)
class Places:
    """Every place that a URI may name. It holds settings alone, so it can be sent to any process."""

    object_store: ObjectStoreConfig

    def of(self, uri: str) -> Place:
        """The place that a URI, or a path of this machine, is in."""
        # Only where they are needed: boto3 and pyarrow's file systems take a second to import.
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
        """A file to seek in; only the parts that are read are fetched, a mebibyte at a time."""
        return cast(BinaryIO, io.BufferedReader(_Ranges(self.of(uri), uri), _READ_AHEAD))


class _Ranges(io.RawIOBase):
    """A file of a place as Python's files are."""

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
        wanted = min(len(view), self._size - self._position)
        if wanted <= 0:
            return 0
        content = self._place.read(self._uri, self._position, wanted)
        view[: len(content)] = content
        self._position += len(content)
        return len(content)
