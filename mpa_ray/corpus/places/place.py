"""The interface of a place: a kind of storage that holds files, such as the local disk, S3 or the web."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Entry:
    """A file as a listing shows it."""

    path: str
    """The path below the listed root, with forward slashes."""
    uri: str
    num_bytes: int | None
    """None if the listing does not show sizes."""
    problem: str | None = None
    """Why the entry cannot be read, such as `unreadable folders (Permission denied)`; None if no problem is known. The
    path of an unreadable folder ends in a slash."""


class Place(Protocol):
    """Lists files, and reads them by URI, as a whole or in part."""

    def walk(self, root: str, after: str = "", num_listers: int = 1) -> Iterator[Entry]:
        """Yield all files below a root, sorted by the UTF-8 bytes of their paths, starting after the path `after`.

        A file or folder below the root that cannot be listed yields an entry with a problem. S3 lists `num_listers`
        prefixes at a time; other places ignore `num_listers`.

        Raises:
            ConfigError: the root cannot be listed.
        """
        ...

    def size(self, uri: str) -> int:
        """Return the file's size in bytes. Raises OSError."""
        ...

    def read(self, uri: str, first: int = 0, num_bytes: int | None = None) -> bytes:
        """Return at most `num_bytes` of the file, starting at byte `first`; None reads to the end.

        Raises:
            OSError: the file does not exist, or cannot be read.
        """
        ...
