"""A source that lists URIs: a text file with one on each line, CSV with a header, or JSON lines."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from typing import Any

from mpa_ray.config import SourceConfig
from mpa_ray.corpus.places.places import Places
from mpa_ray.corpus.sources.source import Rows, UriPolicy, behind
from mpa_ray.errors import ConfigError
from mpa_ray.records import ImageRef

ENDINGS = (".txt", ".csv", ".tsv", ".jsonl", ".ndjson")


class UriList:
    """Relative entries are below the list's own folder; an image's id is the list's name and the row's number."""

    def __init__(self, config: SourceConfig, places: Places) -> None:
        self._config, self._places = config, places
        self._rows, self._uri_policy = Rows(config), UriPolicy(config)
        self._name = config.path.rpartition("/")[2]

    def images(self, after: ImageRef | None = None) -> Iterator[ImageRef]:
        found = self._images()
        return found if after is None else behind(found, after, self._config.path)

    def _images(self) -> Iterator[ImageRef]:
        for number, values in self._values():
            entry = values.get(self._config.image_column)
            where = f"row {number}"
            if not isinstance(entry, str) or not entry:
                raise ConfigError(
                    "source.path",
                    self._config.path,
                    f"{where}: no URI in {self._config.image_column!r}.",
                    "Fill it, or leave the row out.",
                )
            yield self._rows.ref(self._name, number, values, self._uri_policy.uri(entry, self._config.path, where))

    def _values(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Rows by number, from 1 on; blank lines are passed over."""
        try:
            with io.TextIOWrapper(self._places.open(self._config.path), "utf-8-sig", newline="") as file:
                if self._name.endswith((".csv", ".tsv")):
                    yield from self._of_csv(file)
                elif self._name.endswith((".jsonl", ".ndjson")):
                    yield from self._of_json(file)
                else:
                    yield from self._of_text(file)
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise ConfigError(
                "source.path", self._config.path, f"cannot be read ({error}).", "Give a list in UTF-8."
            ) from error

    def _of_text(self, file: io.TextIOWrapper) -> Iterator[tuple[int, dict[str, Any]]]:
        self._rows.check([self._config.image_column], self._name)
        lines = (line.strip() for line in file)
        yield from ((number, {self._config.image_column: line}) for number, line in enumerate(lines, 1) if line)

    def _of_csv(self, file: io.TextIOWrapper) -> Iterator[tuple[int, dict[str, Any]]]:
        reader = csv.DictReader(file, dialect="excel-tab" if self._name.endswith(".tsv") else "excel")
        self._rows.check(list(reader.fieldnames or ()), self._name)
        yield from enumerate(reader, 1)

    def _of_json(self, file: io.TextIOWrapper) -> Iterator[tuple[int, dict[str, Any]]]:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                values = json.loads(line)
            except ValueError as error:
                raise ConfigError(
                    "source.path",
                    self._config.path,
                    f"row {number} is not JSON ({error}).",
                    "Write one object on each line.",
                ) from error
            if not isinstance(values, dict):
                raise ConfigError(
                    "source.path",
                    self._config.path,
                    f"row {number} is no JSON object.",
                    "Write one object on each line.",
                )
            self._rows.check(list(values), f"row {number}")
            yield number, values
