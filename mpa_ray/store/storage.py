"""The one seam between a run and the place that its files are in."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from pyarrow.fs import FileSystem, LocalFileSystem

from mpa_ray.config import ObjectStoreConfig
from mpa_ray.errors import CannotWrite, ConfigError


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
        """Copy the files directly in a local folder, replacing those of the same name."""
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
        temporary = self._write_aside(path, content)
        temporary.replace(Path(self.root, path))

    def create(self, path: str, content: bytes) -> bool:
        temporary = self._write_aside(path, content)
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
            self.write(f"{path}/{file.name}", file.read_bytes())

    def arrow(self) -> tuple[FileSystem, str]:
        return LocalFileSystem(), self.root

    def _write_aside(self, path: str, content: bytes) -> Path:
        target = Path(self.root, path)
        temporary = target.parent / f".{target.name}.{uuid.uuid4().hex}"
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                file.write(content)
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
        from mpa_ray.store.s3 import S3Storage

        return S3Storage(root, object_store or ObjectStoreConfig())
    if "://" in root and not root.startswith("file://"):
        raise ConfigError("run_dir", root, "is neither a folder nor at s3://.", "Give one that every node sees.")
    return LocalStorage(root.removeprefix("file://"))
