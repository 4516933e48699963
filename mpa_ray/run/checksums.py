"""The checksums of files that a run exports in a folder: D_PI, and the weights of students."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mpa_ray.errors import DamagedFile
from mpa_ray.storage.storage import Storage

FILES = "files"
"""The entry of a JSON object that holds checksums, by path below the folder."""
JsonChecksums = dict[str, dict[str, int | str]]
"""The value of this entry."""


@dataclass(frozen=True)
class Checksum:
    """The size and the SHA-256 of a file."""

    num_bytes: int
    sha256: str

    @classmethod
    def of(cls, content: bytes) -> Checksum:
        """The checksum of a file's content."""
        return cls(len(content), hashlib.sha256(content).hexdigest())

    @classmethod
    def of_file(cls, path: Path) -> Checksum:
        """The checksum of a file on this machine."""
        with path.open("rb") as content:
            return cls(path.stat().st_size, hashlib.file_digest(content, "sha256").hexdigest())

    def check(self, path: str, actual: Checksum) -> None:
        """Compare with the checksum of the file that was read. Raises DamagedFile."""
        if actual.num_bytes != self.num_bytes:
            raise DamagedFile(path, f"it has {actual.num_bytes} bytes, and was written with {self.num_bytes}")
        if actual != self:
            raise DamagedFile(path, "its content does not have the checksum that it was written with")


def checksums_of(folder: Path, below: str = "", leaving_out: Collection[str] = ()) -> JsonChecksums:
    """The checksums of the files directly in a local folder, as JSON.

    Args:
        folder: The folder.
        below: Put before each name, such as `merged/`.
        leaving_out: Names of files that may change later.
    """
    files = sorted(file for file in folder.iterdir() if file.is_file() and file.name not in leaving_out)
    return {f"{below}{file.name}": asdict(Checksum.of_file(file)) for file in files}


def read_checked(storage: Storage, folder: str, name: str, manifest: Mapping[str, Any]) -> bytes:
    """Read a file, and compare it with its checksum in a manifest, if there is one. Raises DamagedFile."""
    path = f"{folder}/{name}"
    try:
        content = storage.read(path)
    except FileNotFoundError as error:
        raise DamagedFile(path, "it is missing") from error
    if (known := manifest.get(FILES, {}).get(name)) is not None:
        Checksum(**known).check(path, Checksum.of(content))
    return content


def damaged_files(storage: Storage, folder: str, manifest: Mapping[str, Any]) -> Iterator[DamagedFile]:
    """Read all files whose checksums a manifest holds, in pieces, and yield those that are damaged or missing."""
    for name, known in manifest.get(FILES, {}).items():
        path = f"{folder}/{name}"
        try:
            Checksum(**known).check(path, Checksum(*storage.digest(path)))
        except FileNotFoundError:
            yield DamagedFile(path, "it is missing")
        except DamagedFile as damage:
            yield damage
