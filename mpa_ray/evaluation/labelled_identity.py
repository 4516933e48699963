"""Identifies a labelled set by the content of its files and by the settings with which they are read, but not by the
files' paths."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mpa_ray.config import BenchmarkConfig
from mpa_ray.corpus.places.places import Places
from mpa_ray.errors import ConfigError
from mpa_ray.evaluation.benchmarks import labelled_files
from mpa_ray.evaluation.benchmarks.file import File
from mpa_ray.run.fingerprint_changes import Fingerprint
from mpa_ray.storage.digests import Content, LocalContent, ObjectContent, sha256_of_all

_MAX_WHOLE_PARQUET_BYTES = 2**26
_END_BYTES = 2**20


def labelled_identity(benchmark: BenchmarkConfig, places: Places) -> Fingerprint:
    """The content of a labelled set's files, and the settings with which they are read.

    The images that the files name are not read. Files at `gs://` and on web servers are read again by every call,
    because nothing shows that they are unchanged. If such a file is a Parquet file of more than 64 MiB, only its size,
    its first MiB and its last MiB are read.

    Raises:
        ConfigError: a file is missing or cannot be read.
    """
    settings = benchmark.model_dump(mode="json", include={"kind", "split", "columns", "limit"})
    files = labelled_files(benchmark, places)
    try:
        digests = sha256_of_all([_content(file) for file in files], benchmark.label)
    except OSError as error:
        uri = str(error.filename or benchmark.path)
        raise ConfigError(
            next((file.field for file in files if file.uri == uri), "benchmark.path"),
            uri,
            f"cannot be read ({error.strerror or error}).",
            "Check the path, the connection and your credentials.",
        ) from error
    return {**settings, "files": f"sha256:{_digest(digests)[:16]}"}


def _digest(digests: Sequence[str]) -> str:
    return hashlib.sha256("".join(digests).encode()).hexdigest()


@dataclass(frozen=True)
class _PlaceContent:
    """A file at a place that does not show whether a file has changed, such as a web server."""

    file: File
    num_bytes: int
    key: None = None
    changed_s: float = 0.0
    known_sha256: None = None

    def pieces(self) -> Iterator[bytes]:
        """Yield the content of the file. For a large Parquet file, yield only its size and both ends.

        A JSON file is read completely anyway, for its questions. A Parquet file may also hold the images, of which a
        run may need only a few. The end of a Parquet file holds the sizes and statistics of its columns, and most
        changes to the rows change these.
        """
        uri = self.file.uri
        place = self.file.places.of(uri)
        if self.num_bytes <= _MAX_WHOLE_PARQUET_BYTES or not self.file.is_parquet:
            yield place.read(uri)
            return
        yield str(self.num_bytes).encode()
        yield place.read(uri, 0, _END_BYTES)
        yield place.read(uri, self.num_bytes - _END_BYTES, _END_BYTES)


def _content(file: File) -> Content:
    # boto3 takes a second to import.
    from mpa_ray.storage.object_store import ObjectStore

    match file.uri.partition("://"):
        case ("s3", _, _):
            return ObjectContent.of(ObjectStore(file.places.object_store), file.uri)
        case (_, "", _):
            return LocalContent(Path(file.uri))
        case _:
            return _PlaceContent(file, file.places.of(file.uri).size(file.uri))
