"""What identifies a labelled set: the content of its files and how they are read, but not where they lie."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mpa_ray.config import BenchmarkConfig
from mpa_ray.corpus.places.places import Places
from mpa_ray.errors import ConfigError
from mpa_ray.evaluation.benchmarks import labelled_files
from mpa_ray.run.fingerprint_changes import Fingerprint
from mpa_ray.storage.digests import Content, LocalContent, ObjectContent, sha256_of_all

_MAX_WHOLE_BYTES = 2**26
_END_BYTES = 2**20


def labelled_identity(benchmark: BenchmarkConfig, places: Places) -> Fingerprint:
    """The content of a labelled set's files, and the settings with which they are read.

    The images that the files name are not read.

    Raises:
        ConfigError: a file is missing or cannot be read.
    """
    settings = benchmark.model_dump(mode="json", include={"kind", "split", "columns", "limit"})
    uris = [file.uri for file in labelled_files(benchmark, places)]
    try:
        digests = sha256_of_all([_content(places, uri) for uri in uris], benchmark.label)
    except OSError as error:
        raise ConfigError(
            "benchmark.path",
            str(error.filename or benchmark.path),
            f"cannot be read ({error.strerror or error}).",
            "Check the path, the connection and your credentials.",
        ) from error
    return {**settings, "files": f"sha256:{_digest(digests)[:16]}"}


def _digest(digests: Sequence[str]) -> str:
    return hashlib.sha256("".join(digests).encode()).hexdigest()


@dataclass(frozen=True)
class _PlaceContent:
    """A file at a place that does not show whether a file has changed, such as a web server.

    A file of more than 64 MiB is represented by its size and both ends. The end of a Parquet file holds statistics of
    its rows, so it changes when the rows change.
    """

    places: Places
    uri: str
    num_bytes: int
    is_settled: bool = False
    known_sha256: None = None

    @property
    def key(self) -> str:
        return f"{self.uri}:{self.num_bytes}"

    def pieces(self) -> Iterator[bytes]:
        place = self.places.of(self.uri)
        if self.num_bytes <= _MAX_WHOLE_BYTES:
            yield place.read(self.uri)
            return
        yield str(self.num_bytes).encode()
        yield place.read(self.uri, 0, _END_BYTES)
        yield place.read(self.uri, self.num_bytes - _END_BYTES, _END_BYTES)


def _content(places: Places, uri: str) -> Content:
    # boto3 takes a second to import.
    from mpa_ray.storage.object_store import ObjectStore

    match uri.partition("://"):
        case ("s3", _, _):
            return ObjectContent.of(ObjectStore(places.object_store), uri)
        case (_, "", _):
            return LocalContent(Path(uri))
        case _:
            return _PlaceContent(places, uri, places.of(uri).size(uri))
