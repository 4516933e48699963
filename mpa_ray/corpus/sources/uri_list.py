"""A source that is a list of URIs: a text file with one URI per line, a CSV file with a header, or JSON lines."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import Any

from mpa_ray.config import SourceConfig
from mpa_ray.corpus.places.places import Places
from mpa_ray.corpus.sources.source import Rows, UriPolicy, images_after
from mpa_ray.errors import ConfigError
from mpa_ray.records import ImageRef
from mpa_ray.textual import parse_json

ENDINGS = (".txt", ".csv", ".tsv", ".jsonl", ".ndjson")


class UriList:
    """Images that a list names. The id of an image is the list's name and the row number.

    Relative paths are relative to the list's folder.
    """

    def __init__(self, config: SourceConfig, places: Places) -> None:
        self._config, self._places = config, places
        self._rows, self._uri_policy = Rows(config), UriPolicy(config)
        self._name = config.path.rpartition("/")[2]

    def images(self, after: ImageRef | None = None) -> Iterator[ImageRef]:
        images = self._images()
        return images if after is None else images_after(images, after, self._config.path)

    def _images(self) -> Iterator[ImageRef]:
        for number, values in self._values():
            entry = values.get(self._config.image_column)
            where = f"row {number}"
            if not isinstance(entry, str) or not entry:
                raise ConfigError(
                    "source.path",
                    self._config.path,
                    f"{where}: no URI in {self._config.image_column!r}.",
                    "Fill it, or remove the row.",
                )
            yield self._rows.ref(self._name, number, values, self._uri_policy.uri(entry, self._config.path, where))

    def _values(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield the rows with their numbers, starting at 1. Blank lines are skipped but counted."""
        try:
            with io.TextIOWrapper(self._places.open(self._config.path), "utf-8-sig", newline="") as file:
                if self._name.endswith((".csv", ".tsv")):
                    yield from self._read_csv(file)
                elif self._name.endswith((".jsonl", ".ndjson")):
                    yield from self._read_json(file)
                else:
                    yield from self._read_text(file)
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise ConfigError(
                "source.path", self._config.path, f"cannot be read ({error}).", "Give a list in UTF-8."
            ) from error

    def _read_text(self, file: io.TextIOWrapper) -> Iterator[tuple[int, dict[str, Any]]]:
        self._rows.check([self._config.image_column], self._name)
        lines = (line.strip() for line in file)
        yield from ((number, {self._config.image_column: line}) for number, line in enumerate(lines, 1) if line)

    def _read_csv(self, file: io.TextIOWrapper) -> Iterator[tuple[int, dict[str, Any]]]:
        reader = csv.DictReader(file, dialect="excel-tab" if self._name.endswith(".tsv") else "excel")
        self._rows.check(list(reader.fieldnames or ()), self._name)
        yield from enumerate(reader, 1)

    def _read_json(self, file: io.TextIOWrapper) -> Iterator[tuple[int, dict[str, Any]]]:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                values = parse_json(line)
            except ValueError as error:
                raise ConfigError(
                    "source.path",
                    self._config.path,
                    f"row {number} is not JSON ({error}).",
                    "Write one object per line.",
                ) from error
            if not isinstance(values, dict):
                raise ConfigError(
                    "source.path",
                    self._config.path,
                    f"row {number} is not a JSON object.",
                    "Write one object per line.",
                )
            self._rows.check(list(values), f"row {number}")
            yield number, values
