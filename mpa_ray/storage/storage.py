"""The interface between a run and the place where its files are stored."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

from pyarrow.fs import FileSystem

from mpa_ray.storage.exclusive import Creation

PROBES = ".probes"
"""The folder in which `Storage.check_create` creates files to test a file system. A killed command may leave some of
them behind."""


@dataclass(frozen=True)
class StoredFile:
    """A file as a listing shows it."""

    path: str
    num_bytes: int
    modified: datetime


class Storage(Protocol):
    """Stores whole files under one root. Paths are relative to the root and use forward slashes."""

    root: str

    def read(self, path: str) -> bytes:
        """Return the file's content. Raises FileNotFoundError."""
        ...

    def write(self, path: str, content: bytes) -> None:
        """Write or replace a file; no reader ever sees part of it. Raises CannotWrite."""
        ...

    def create(self, path: str, content: bytes) -> bool:
        """Write the file only if it does not exist; exactly one of many callers gets True. Raises CannotWrite."""
        ...

    def check_create(self, path: str) -> Creation:
        """Check that `create` never replaces a file, and return how it creates one.

        Args:
            path: An existing file. The check may replace its content.

        Raises:
            ConfigError: the storage cannot create a file without possibly replacing another.
            CannotWrite: the storage cannot be written now.
        """
        ...

    def exists(self, path: str) -> bool: ...

    def digest(self, path: str) -> tuple[int, str]:
        """Return the size and the SHA-256 of a file, which is read in pieces. Raises FileNotFoundError."""
        ...

    def list(self, folder: str) -> Iterator[str]:
        """Yield the sorted paths of the files directly in a folder, without hidden files. A missing folder counts as
        empty."""
        ...

    def put_folder(self, source: Path, path: str) -> None:
        """Copy the files directly in the local folder `source`, and replace files of the same name. Raises
        CannotWrite."""
        ...

    def delete(self, path: str) -> None:
        """Remove a file if it exists."""
        ...

    def details(self, folder: str) -> Iterator[StoredFile]:
        """Yield the files directly in a folder, including hidden and unfinished files."""
        ...

    def drop_unfinished(self, before: datetime) -> int:
        """Abort or remove the unfinished writes in all folders that began before the time `before`.

        Returns their number.
        """
        ...

    def free_bytes(self) -> int | None:
        """Return the free space in bytes; None if the storage has no limit."""
        ...

    def arrow(self) -> tuple[FileSystem, str]:
        """The storage as a pyarrow file system, and the path of the root in it."""
        ...
