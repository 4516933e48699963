"""One file of a benchmark, JSON or Parquet."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mpa_ray.corpus.locator import Locator
from mpa_ray.corpus.places.places import Places
from mpa_ray.corpus.sources.arrow_rows import rows_of
from mpa_ray.corpus.sources.columns import ImageColumn
from mpa_ray.corpus.sources.parquet import rows_with_images
from mpa_ray.errors import ConfigError
from mpa_ray.textual import parse_json

_LINES = (".jsonl", ".ndjson")
JSON = (".json", *_LINES)
PARQUET = (".parquet",)
_OF_TABLES = (".csv", ".tsv", ".xlsx", ".xls")
_PART_OF = re.compile(r"-\d+-of-\d+.*")
_SPLIT = re.compile(r"(?:train|val|valid|validate|validation|minival|dev|test|testdev)(?:\d{4})?")


@dataclass(frozen=True)
class File:
    """A file of questions, either JSON or Parquet."""

    places: Places
    uri: str
    name: str
    """The file's path below the folder that was listed."""
    field: str = "benchmark.path"
    """The setting that names the file, for error messages."""

    @property
    def split(self) -> str:
        """The split in the file's name or, if there is none, in its folder's name, such as val; empty if neither
        contains a split."""
        *_, folder, name = ["", "", *self.uri.split("/")]
        stem = _PART_OF.sub("", re.sub(r"\.\w+$", "", name)).lower()
        splits = [part for part in (*re.split(r"[-_. ]", stem), folder.lower()) if _SPLIT.fullmatch(part)]
        return canonical_split(splits[0]) if splits else ""

    @property
    def is_parquet(self) -> bool:
        """Whether the file is Parquet. The extension decides or, if it is unknown, the file's first bytes."""
        if self.uri.lower().endswith((*JSON, *PARQUET)):
            return self.uri.lower().endswith(PARQUET)
        return self._read(4) == b"PAR1"

    def entries(self, key: str | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the objects of a JSON file, each with its position for error messages.

        The file holds a list, a list under `key`, JSON lines, or, if `key` is None, an object of objects. In the last
        case, the key of each object becomes its `id`.
        """
        for position, entry in self._entries(key):
            if not isinstance(entry, dict):
                raise self.error(f"{position} is not an object.", "Check that the file belongs to this benchmark.")
            yield position, entry

    def rows(self, columns: Sequence[str], image: str) -> Iterator[tuple[dict[str, Any], str | None]]:
        """Yield the rows of a Parquet file, each with the locator of its image. The images' bytes are not read.

        Each row has the values of `columns`, except for the columns that the file lacks. If the column `image` holds
        file names instead of images, the names are among the values, and the locators are None.
        """
        try:
            with self.places.open(self.uri) as content, pq.ParquetFile(content, pre_buffer=False) as file:
                yield from self._rows(file, columns, image)
        except (OSError, ValueError, pa.ArrowException) as error:
            raise self.error(f"cannot be read as Parquet ({error}).", "Download the file again.") from error

    def value(self, key: str) -> Any:
        """The value under a key of a JSON object; None for other files."""
        document = self._document(self._text())
        return document.get(key) if isinstance(document, dict) else None

    def error(self, problem: str, remedy: str) -> ConfigError:
        return ConfigError(self.field, self.uri, problem, remedy)

    def _entries(self, key: str | None) -> Iterator[tuple[str, Any]]:
        text = self._text()
        document = None if self.uri.lower().endswith(_LINES) else self._document(text)
        if document is None:
            yield from self._lines(text)
            return
        if key is None and isinstance(document, dict):
            for name, entry in document.items():
                yield f"question {name!r}", {"id": name, **entry} if isinstance(entry, dict) else entry
            return
        entries = document.get(key) if isinstance(document, dict) else document
        if not isinstance(entries, list):
            raise self.error(
                f"has no list {key!r}." if key else "is not a list.", "Check that the file belongs to this benchmark."
            )
        yield from ((f"row {number}", entry) for number, entry in enumerate(entries))

    def _document(self, text: str) -> Any:
        """The content as one JSON document; None for JSON lines."""
        try:
            return parse_json(text)
        except json.JSONDecodeError as error:
            if error.msg == "Extra data":
                return None
            if self.uri.lower().endswith(_OF_TABLES):
                problem = "is a table in a format that benchmarks do not support."
                raise self.error(problem, "Give the questions as JSON, JSON lines or Parquet.") from None
            raise self.error(f"is not JSON ({error}).", "Download the file again.") from None
        except ValueError as error:
            raise self.error(f"is not JSON ({error}).", "Download the file again.") from None

    def _lines(self, text: str) -> Iterator[tuple[str, Any]]:
        for number, line in enumerate(text.split("\n"), 1):
            if not line.strip():
                continue
            try:
                yield f"line {number}", parse_json(line)
            except ValueError as error:
                problem = error.msg if isinstance(error, json.JSONDecodeError) else error
                raise self.error(f"line {number} is not JSON ({problem}).", "Correct the line.") from None

    def _text(self) -> str:
        try:
            return self._read().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise self.error(f"is not UTF-8 ({error.reason}).", "Give the questions as JSON or Parquet.") from error

    def _read(self, num_bytes: int | None = None) -> bytes:
        try:
            return self.places.of(self.uri).read(self.uri, 0, num_bytes)
        except OSError as error:
            raise self.error(
                f"cannot be read ({error.strerror or error}).", "Check the path, the connection and your permissions."
            ) from error

    def _rows(
        self, file: pq.ParquetFile, columns: Sequence[str], image: str
    ) -> Iterator[tuple[dict[str, Any], str | None]]:
        schema = file.schema_arrow
        names = [name for name in columns if name in schema.names and name != image]
        if not names:
            raise self.error(
                f"has the columns {', '.join(map(repr, schema.names))}, but none of {', '.join(map(repr, columns))}.",
                "Check that the file belongs to this benchmark.",
            )
        if repeated := [name for name in (*names, image) if schema.names.count(name) > 1]:
            raise self.error(
                f"has several columns named {repeated[0]!r}.", "Rename them, so that each name occurs once."
            )
        column = ImageColumn.find(schema, image)
        if column is None:
            yield from ((values, None) for batch in file.iter_batches(columns=names) for values in rows_of(batch))
            return
        for number, (values, path) in enumerate(rows_with_images(file, names, column)):
            is_empty = column.kind == "text" and image in values and not values[image]
            locator = str(Locator(self.uri, row=number, column=image)) if path is None and not is_empty else None
            yield {**values, image: path}, locator


def canonical_split(split: str) -> str:
    """A split's canonical name: `val` for val, valid, validation and val2014."""
    name = re.sub(r"\d{4}$", "", split.lower())
    return "val" if name in ("valid", "validate", "validation") else name
