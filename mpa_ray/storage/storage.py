"""The one seam between a run and the place that its files are in."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import IO, Protocol

from pyarrow.fs import FileSystem, LocalFileSystem

from mpa_ray.config import ObjectStoreConfig
from mpa_ray.errors import CannotWrite, ConfigError

_COPIED_AT_A_TIME = 2**20


@dataclass(frozen=True)
class StoredFile:
    """A file as listing shows it."""

    path: str
    num_bytes: int
    modified: datetime


class Storage(Protocol):
    """Whole files under one root, by relative path with forward slashes."""

    root: str

    def read(self, path: str) -> bytes:
        """The file's content. Raises FileNotFoundError."""
        ...

    def write(self, path: str, content: bytes) -> None:
        """Write or replace a file; no reader ever sees a part of it. Raises CannotWrite."""
        ...

    def create(self, path: str, content: bytes) -> bool:
        """Write the file only if there is none; of many callers exactly one gets True. Raises CannotWrite."""
        ...

    def exists(self, path: str) -> bool: ...

    def list(self, folder: str) -> Iterator[str]:
        """Paths of the files directly in a folder, sorted; none where there is no folder."""
        ...

    def put_folder(self, source: Path, path: str) -> None:
        """Copy the files directly in a local folder, replacing those of the same name. Raises CannotWrite."""
        ...

    def delete(self, path: str) -> None:
        """Remove a file; one that is not there is as good as removed."""
        ...

    def details(self, folder: str) -> Iterator[StoredFile]:
        """The files directly in a folder, those included that were never finished."""
        ...

    def drop_unfinished(self, before: datetime) -> int:
        """Give up writes that began before a moment and show in no listing; how many there were."""
        ...

    def free_bytes(self) -> int | None:
        """Room that is left; None where there is no limit."""
        ...

    def arrow(self) -> tuple[FileSystem, str]:
        """The same place for libraries that take pyarrow's file systems, and the root's path in it."""
        ...


class LocalStorage:
    """A folder of this machine, or one that every node mounts."""

    def __init__(self, root: str) -> None:
        self.root = str(Path(root).absolute())

    def read(self, path: str) -> bytes:
        return Path(self.root, path).read_bytes()

    def write(self, path: str, content: bytes) -> None:
        temporary = self._write_aside(path, BytesIO(content))
        temporary.replace(Path(self.root, path))

    def create(self, path: str, content: bytes) -> bool:
        temporary = self._write_aside(path, BytesIO(content))
        try:
            # A link appears whole or not at all and fails where the name exists; a rename would replace it.
            os.link(temporary, Path(self.root, path))
        except FileExistsError:
            return False
        finally:
            temporary.unlink()
        return True

    def exists(self, path: str) -> bool:
        return Path(self.root, path).exists()

    def list(self, folder: str) -> Iterator[str]:
        found = Path(self.root, folder)
        names = sorted(e.name for e in os.scandir(found) if e.is_file()) if found.is_dir() else []
        return (f"{folder}/{name}" for name in names if not name.startswith("."))

    def put_folder(self, source: Path, path: str) -> None:
        for file in sorted(f for f in source.iterdir() if f.is_file()):
            with file.open("rb") as content:
                temporary = self._write_aside(f"{path}/{file.name}", content)
            temporary.replace(Path(self.root, path, file.name))

    def delete(self, path: str) -> None:
        Path(self.root, path).unlink(missing_ok=True)

    def details(self, folder: str) -> Iterator[StoredFile]:
        found = Path(self.root, folder)
        if not found.is_dir():
            return
        with os.scandir(found) as entries:
            for entry in entries:
                if entry.is_file():
                    status = entry.stat()
                    modified = datetime.fromtimestamp(status.st_mtime, UTC)
                    yield StoredFile(f"{folder}/{entry.name}", status.st_size, modified)

    def drop_unfinished(self, before: datetime) -> int:  # noqa: ARG002
        # `details` shows them.
        return 0

    def free_bytes(self) -> int | None:
        return shutil.disk_usage(self.root).free

    def arrow(self) -> tuple[FileSystem, str]:
        return LocalFileSystem(), self.root

    def _write_aside(self, path: str, content: IO[bytes]) -> Path:
        target = Path(self.root, path)
        temporary = target.parent / f".{target.name}.{uuid.uuid4().hex}"
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                shutil.copyfileobj(content, file, _COPIED_AT_A_TIME)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            # A full disk keeps no half-written file besides.
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise CannotWrite(str(target), error.strerror or str(error)) from error
        return temporary


def open_storage(root: str, object_store: ObjectStoreConfig | None = None) -> Storage:
    """The storage behind a run directory.

    Raises:
        ConfigError: the kind of URI is not supported.
    """
    if root.startswith("s3://"):
        # Only here, since boto3 takes a second to import.
        from mpa_ray.storage.s3 import S3Storage

        return S3Storage(root, object_store or ObjectStoreConfig())
    if "://" in root and not root.startswith("file://"):
        raise ConfigError("run_dir", root, "is neither a folder nor at s3://.", "Give one that every node sees.")
    return LocalStorage(root.removeprefix("file://"))
