"""The marker of a shard: a small file that publishes a generation of the shard's rows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from types import MappingProxyType

import pyarrow as pa

from mpa_ray.errors import DamagedFile
from mpa_ray.run.sealed_json import parse_sealed, sealed

NO_VERSIONS: Mapping[str, str] = MappingProxyType({})
"""The library versions for rows that were not made by a model."""
_ALWAYS = ("shard", "file", "num_rows", "generation", "source_generation")
"""The fields that every marker has. Other fields are left out if they have their default."""


@dataclass(frozen=True)
class Commit:
    """The content of a marker: which file holds the rows of a shard, and how the rows were made."""

    shard: str
    file: str
    num_rows: int
    generation: int = 0
    """0 for the first commit of the shard, and one more each time the shard is redone."""
    source_generation: int = 0
    """The generation of the source's shard from which the rows were made."""
    left_out: dict[str, int] = field(default_factory=dict)
    """For a shard of the corpus: how many files the listing left out between the last image of the previous shard and
    the last image of this shard, by ending or reason."""
    versions: dict[str, str] = field(default_factory=dict)
    """The versions of the libraries with which the rows were made; see `mpa_ray.run.versions`."""
    fingerprint: str = ""
    """The digest of the dataset's fingerprint; "" in markers of earlier versions."""
    num_bytes: int = 0
    """The size of the file."""
    sha256: str = ""
    """The SHA-256 of the file, in hexadecimal digits. Markers of older versions have none."""
    same_rows_since: int | None = None
    """The oldest generation with the same rows, if a repair made the rows again and they came out the same."""
    is_withdrawn: bool = False
    """Whether the shard has no rows, because those of the previous generation are damaged: `audit --repair` writes such
    a marker. File, size, checksum and number of rows are then those of the damaged rows, as far as they are known."""

    @property
    def rows_since(self) -> int:
        """The oldest generation with the same rows."""
        return self.generation if self.same_rows_since is None else self.same_rows_since

    def withdrawn(self, generation: int) -> Commit:
        """The marker of a later generation that withdraws the rows of this one."""
        return Commit(
            shard=self.shard,
            file=self.file,
            num_rows=self.num_rows,
            generation=generation,
            fingerprint=self.fingerprint,
            num_bytes=self.num_bytes,
            sha256=self.sha256,
            same_rows_since=self.rows_since,
            is_withdrawn=True,
        )

    def to_json(self) -> bytes:
        """The content of the marker. Most fields are left out if they have their default."""
        values = asdict(self)
        shown = {name: value for name, value in values.items() if name in _ALWAYS or value}
        if self.same_rows_since is not None:
            shown["same_rows_since"] = self.same_rows_since
        return json.dumps(sealed(shown)).encode()

    @classmethod
    def from_json(cls, content: bytes, path: str = "the marker") -> Commit:
        """Read a marker. Fields that another version has added are ignored. Raises DamagedFile."""
        known = {known.name for known in fields(cls)}
        try:
            return cls(**{name: value for name, value in parse_sealed(content).items() if name in known})
        except (TypeError, ValueError) as error:
            raise DamagedFile(path, str(error)) from error

    def check(self, content: bytes) -> None:
        """Compare the content of the file with its checksum. Raises DamagedFile."""
        if not self.sha256:
            return
        if len(content) != self.num_bytes:
            raise DamagedFile(self.file, f"it has {len(content)} bytes, but its marker says {self.num_bytes}")
        if hashlib.sha256(content).hexdigest() != self.sha256:
            raise DamagedFile(self.file, "its content does not have the checksum in its marker")


@contextmanager
def decoding(commit: Commit) -> Iterator[None]:
    """Raise DamagedFile if the file of a marker, which may have no checksum, cannot be decoded."""
    try:
        yield
    except (pa.ArrowException, OSError, MemoryError, OverflowError, UnicodeDecodeError) as error:
        raise DamagedFile(commit.file, " ".join(str(error).split()) or type(error).__name__) from error
