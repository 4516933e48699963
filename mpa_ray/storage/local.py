"""Storage in a local folder."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import IO

from pyarrow.fs import FileSystem, LocalFileSystem

from mpa_ray.config import ObjectStoreConfig
from mpa_ray.config.regular_file import read_regular_file
from mpa_ray.errors import CannotWrite
from mpa_ray.storage.deadline import call_with_deadline
from mpa_ray.storage.storage import StoredFile

_COPY_BUFFER_BYTES = 2**20
_READ_DEADLINE_S = ObjectStoreConfig().read_deadline_s


class LocalStorage:
    """A folder on this machine, or one that every node mounts."""

    def __init__(self, root: str, read_deadline_s: float = _READ_DEADLINE_S) -> None:
        """Use a folder, which need not exist yet.

        Args:
            root: The folder's path.
            read_deadline_s: Seconds after which reading a file fails, because a mount may not answer.
        """
        self.root = str(Path(root).absolute())
        self._read_deadline_s = read_deadline_s

    def read(self, path: str) -> bytes:
        file = Path(self.root, path)
        try:
            return call_with_deadline(lambda: read_regular_file(file), self._read_deadline_s, str(file))
        except NotADirectoryError as error:
            # A parent of the path is a file instead of a folder, so the path does not exist.
            raise FileNotFoundError(error.errno, error.strerror, str(file)) from None

    def write(self, path: str, content: bytes) -> None:
        temporary = self._write_temporary(path, BytesIO(content))
        temporary.replace(Path(self.root, path))

    def create(self, path: str, content: bytes) -> bool:
        temporary = self._write_temporary(path, BytesIO(content))
        try:
            # Linking is atomic and fails if the name exists; a rename would replace the file.
            os.link(temporary, Path(self.root, path))
        except FileExistsError:
            return False
        finally:
            temporary.unlink()
        return True

    def exists(self, path: str) -> bool:
        return Path(self.root, path).exists()

    def list(self, folder: str) -> Iterator[str]:
        directory = Path(self.root, folder)
        names = sorted(entry.name for entry in os.scandir(directory) if entry.is_file()) if directory.is_dir() else []
        return (f"{folder}/{name}" for name in names if not name.startswith("."))

    def put_folder(self, source: Path, path: str) -> None:
        for file in sorted(f for f in source.iterdir() if f.is_file()):
            with file.open("rb") as content:
                temporary = self._write_temporary(f"{path}/{file.name}", content)
            temporary.replace(Path(self.root, path, file.name))

    def delete(self, path: str) -> None:
        Path(self.root, path).unlink(missing_ok=True)

    def details(self, folder: str) -> Iterator[StoredFile]:
        directory = Path(self.root, folder)
        if not directory.is_dir():
            return
        with os.scandir(directory) as entries:
            for entry in entries:
                if entry.is_file():
                    status = entry.stat()
                    modified = datetime.fromtimestamp(status.st_mtime, UTC)
                    yield StoredFile(f"{folder}/{entry.name}", status.st_size, modified)

    def drop_unfinished(self, before: datetime) -> int:  # noqa: ARG002
        # There is nothing to drop here, because `details` lists all unfinished files.
        return 0

    def free_bytes(self) -> int | None:
        return shutil.disk_usage(self.root).free

    def arrow(self) -> tuple[FileSystem, str]:
        return LocalFileSystem(), self.root

    def _write_temporary(self, path: str, content: IO[bytes]) -> Path:
        target = Path(self.root, path)
        temporary = target.parent / f".{target.name}.{uuid.uuid4().hex}"
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                shutil.copyfileobj(content, file, _COPY_BUFFER_BYTES)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            # Do not leave a half-written file on a full disk.
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise CannotWrite(str(target), error.strerror or str(error)) from error
        return temporary
