"""The input of a benchmark's reader: its files, and their entries as records."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from mpa_ray.config import BenchmarkConfig
from mpa_ray.corpus.places.places import Places
from mpa_ray.evaluation.benchmarks.file import File, canonical_split
from mpa_ray.evaluation.benchmarks.finding import JSON_OR_PARQUET, find_files
from mpa_ray.evaluation.benchmarks.images import Images
from mpa_ray.evaluation.benchmarks.record import Record


@dataclass(frozen=True)
class Inputs:
    """A benchmark's files."""

    spec: BenchmarkConfig
    places: Places
    endings: tuple[str, ...] = JSON_OR_PARQUET
    """The file name endings of files with questions. They are used if `spec.path` is a folder or a glob, or is in an
    object store."""

    @cached_property
    def files(self) -> list[File]:
        return find_files(self.places, self.spec.path, self.spec.split, endings=self.endings)

    @cached_property
    def images(self) -> Images:
        return Images(self.places, self.spec.images)

    def records(self, key: str | None, columns: Sequence[str], image: str = "image") -> Iterator[Record]:
        """Yield the entries of all files: JSON entries under `key` (see `File.entries`), or Parquet rows with the
        columns `columns`."""
        number = 0
        for file in self.files:
            if not file.is_parquet:
                yield from self.entries(file, key)
                continue
            for row, (values, uri) in enumerate(file.rows(columns, image)):
                split = self.split_of(file)
                yield Record(file.uri, f"row {row}", number, split, values, f"{file.name}/{row}", uri)
                number += 1

    def entries(self, file: File, key: str | None) -> Iterator[Record]:
        """Yield all entries of one JSON file."""
        split = self.split_of(file)
        for row, (position, values) in enumerate(file.entries(key)):
            yield Record(file.uri, position, row, split, values, f"{file.name}/{row}", field=file.field)

    def split_of(self, file: File) -> str:
        return canonical_split(self.spec.split or file.split)
