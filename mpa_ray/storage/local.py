"""Storage in a local folder."""

from __future__ import annotations

import errno
import hashlib
import os
import re
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
from mpa_ray.errors import CannotWrite, ConfigError
from mpa_ray.storage.deadline import call_with_deadline
from mpa_ray.storage.exclusive import Creation, NotExclusive, give_name
from mpa_ray.storage.storage import PROBES, StoredFile

_COPY_BUFFER_BYTES = 2**20
_MAX_PATH_BYTES = 4095
_MAX_PATH_IN_RUN_BYTES = 512
"""The maximum length of a path inside a run, relative to the run directory."""
_TEMPORARY_DIGITS = 16
_TEMPORARY = re.compile(rf"\.[0-9a-f]{{{_TEMPORARY_DIGITS}}}")
"""The names of unfinished files."""
_READ_DEADLINE_S = ObjectStoreConfig().read_deadline_s


class LocalStorage:
    """A folder on this machine, or one that every node mounts."""

    def __init__(self, root: str, read_deadline_s: float = _READ_DEADLINE_S) -> None:
        """Use a folder, which may not exist yet.

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
        self._replace(path, BytesIO(content))

    def create(self, path: str, content: bytes) -> bool:
        return self._create(path, content) is not None

    def check_create(self, path: str) -> Creation:  # noqa: ARG002
        if len(os.fsencode(self.root)) > _MAX_PATH_BYTES - _MAX_PATH_IN_RUN_BYTES:
            problem = (
                f"is too long: a path can have {_MAX_PATH_BYTES} bytes, and the names of the run's files need up to "
                f"{_MAX_PATH_IN_RUN_BYTES} of them."
            )
            raise ConfigError("run_dir", self.root, problem, "Give a shorter path.")
        # Other commands may check at the same time.
        probe = f"{PROBES}/{uuid.uuid4().hex}"
        try:
            how = self._create(probe, b"first")
            if how is not None and self._create(probe, b"second") is None and self.read(probe) == b"first":
                return how
        except CannotWrite as error:
            if not isinstance(error.__cause__, NotExclusive):
                raise
            raise self._not_exclusive(f"has {error.__cause__.strerror}") from error
        finally:
            _remove(Path(self.root, probe))
        raise self._not_exclusive("replaces files that exist")

    def exists(self, path: str) -> bool:
        return Path(self.root, path).exists()

    def digest(self, path: str) -> tuple[int, str]:
        file = Path(self.root, path)
        with file.open("rb") as content:
            return file.stat().st_size, hashlib.file_digest(content, "sha256").hexdigest()

    def list(self, folder: str) -> Iterator[str]:
        directory = Path(self.root, folder)
        names = sorted(entry.name for entry in os.scandir(directory) if entry.is_file()) if directory.is_dir() else []
        return (f"{folder}/{name}" for name in names if not name.startswith("."))

    def put_folder(self, source: Path, path: str) -> None:
        for file in sorted(f for f in source.iterdir() if f.is_file()):
            with file.open("rb") as content:
                self._replace(f"{path}/{file.name}", content)

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

    def drop_unfinished(self, before: datetime) -> int:
        num_dropped = 0
        for folder, _, names in os.walk(self.root):
            for file in (Path(folder, name) for name in names if _TEMPORARY.fullmatch(name)):
                # Another command may be about to give the file its name.
                with suppress(FileNotFoundError):
                    if file.lstat().st_mtime < before.timestamp():
                        file.unlink()
                        num_dropped += 1
        return num_dropped

    def free_bytes(self) -> int | None:
        return shutil.disk_usage(self.root).free

    def arrow(self) -> tuple[FileSystem, str]:
        return LocalFileSystem(), self.root

    def _replace(self, path: str, content: IO[bytes]) -> None:
        temporary, target = self._write_temporary(path, content), Path(self.root, path)
        try:
            temporary.replace(target)
        except OSError as error:
            _remove(temporary)
            raise _cannot_write(target, error) from error

    def _create(self, path: str, content: bytes) -> Creation | None:
        """Create a file, and return how it was created; None if a file of this name exists."""
        temporary, target = self._write_temporary(path, BytesIO(content)), Path(self.root, path)
        try:
            return give_name(temporary, target)
        except FileExistsError:
            return None
        except OSError as error:
            raise _cannot_write(target, error) from error
        finally:
            _remove(temporary)

    def _write_temporary(self, path: str, content: IO[bytes]) -> Path:
        target = Path(self.root, path)
        # The temporary name does not contain the file's own name, which may already have the maximum length.
        temporary = target.parent / f".{uuid.uuid4().hex[:_TEMPORARY_DIGITS]}"
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                shutil.copyfileobj(content, file, _COPY_BUFFER_BYTES)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            # Do not leave a half-written file on a full disk.
            _remove(temporary)
            raise _cannot_write(target, error) from error
        return temporary

    def _not_exclusive(self, problem: str) -> ConfigError:
        return ConfigError(
            "run_dir",
            self.root,
            f"is on a file system that {problem}, so two commands could overwrite each other's results.",
            "Give a folder on another file system, or an s3:// prefix.",
        )


def _remove(temporary: Path) -> None:
    with suppress(OSError):
        temporary.unlink(missing_ok=True)


def _cannot_write(target: Path, error: OSError) -> CannotWrite:
    problem = error.strerror or str(error)
    if error.errno == errno.ENAMETOOLONG:
        problem = f"{problem}: give a run_dir with a shorter path, or shorter names"
    if error.errno == errno.EEXIST:
        problem = f"{error.filename} is a file, not a folder"
    return CannotWrite(str(target), problem)
