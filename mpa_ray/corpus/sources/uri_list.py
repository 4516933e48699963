"""A source that is a list of images: a text file with one URI per line, a CSV file with a header, or a JSON file."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any, BinaryIO

from mpa_ray.config import SourceConfig
from mpa_ray.corpus.locator import Locator
from mpa_ray.corpus.places.places import Places
from mpa_ray.corpus.sources import list_records
from mpa_ray.corpus.sources.columns import split_item
from mpa_ray.corpus.sources.embedded import embedded_content, is_embedded
from mpa_ray.corpus.sources.left_out import LeftOut
from mpa_ray.corpus.sources.list_records import BadRecord, ListRecord
from mpa_ray.corpus.sources.source import Listed, Rows, UriPolicy, images_after
from mpa_ray.errors import ConfigError
from mpa_ray.records import ImageRef

ENDINGS = (*list_records.TEXT, *list_records.CSV, *list_records.JSON)
_DEFAULT_COLUMN = "image"
_IMAGES = "images"
"""The column in which ms-swift and LLaMA-Factory list the images of a row. LLaVA has one path in `image` instead."""
_CONVERSATION = ("conversations", "messages", "query")
"""A row with one of these columns is a training example, which may have no image."""
_NO_IMAGE = LeftOut("rows without an image")
_COMMENT = LeftOut("comments (lines that begin with #)")


def is_text_list(path: str) -> bool:
    """Whether a list has one entry on each line, without columns. The ending of its path decides."""
    return not path.lower().endswith((*list_records.CSV, *list_records.JSON))


class UriList:
    """Images that a list names or contains. The id of an image is the list's name and the row number.

    Relative paths are relative to the list's folder.
    """

    def __init__(self, config: SourceConfig, places: Places) -> None:
        self._config, self._places = config, places
        self._rows, self._uri_policy = Rows(config), UriPolicy(config)
        self._name = config.path.rpartition("/")[2]

    def images(self, after: ImageRef | None = None) -> Iterator[Listed]:
        images = self._images()
        return images if after is None else images_after(images, after, self._config.path)

    def _images(self) -> Iterator[Listed]:
        try:
            with self._places.open(self._config.path) as file:
                for record in self._records(file):
                    yield from (_COMMENT,) if self._is_comment(record) else self._images_of(record)
        except BadRecord as error:
            raise ConfigError("source.path", self._config.path, error.problem, error.remedy) from error
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise ConfigError(
                "source.path",
                self._config.path,
                f"cannot be read ({error}).",
                "Check the path and its permissions; the list must be UTF-8.",
            ) from error

    def _records(self, file: BinaryIO) -> Iterator[ListRecord]:
        name = self._name.lower()
        if name.endswith(list_records.JSON):
            return list_records.json_records(file)
        if name.endswith(list_records.CSV):
            names, records = list_records.csv_records(file, "\t" if name.endswith(".tsv") else ",")
            if not names:
                raise BadRecord("is empty: it does not even have a header.", "Give a list with a header and rows.")
            if len(names) == 1 and names[0] != self._config.image_column and re.search(r"[,;\t|]", names[0]):
                remedy = "Separate its columns with commas in a .csv file, and with tabs in a .tsv file."
                raise BadRecord(f"has only one column, {names[0]!r}.", remedy)
            self._rows.check(names, self._name)
            return records
        # A text file has no columns, so every setting that names a column is an error.
        self._rows.check([_DEFAULT_COLUMN], self._name)
        return list_records.text_records(file, _DEFAULT_COLUMN)

    def _is_comment(self, record: ListRecord) -> bool:
        return is_text_list(self._name) and record.raw.lstrip().startswith(b"#")

    def _images_of(self, record: ListRecord) -> Iterator[Listed]:
        column, item = split_item(self._column_of(record.values), record.values)
        value = record.values.get(column)
        if not value and any(name in record.values for name in _CONVERSATION):
            yield _NO_IMAGE
            return
        self._rows.check([*record.values], f"row {record.number}", image_column=column)
        images = value if isinstance(value, list) else [value]
        if item is not None:
            images = images[item : item + 1] if isinstance(value, list) else [None]
        if not images and value:
            yield LeftOut(f"rows without {self._config.image_column}")
            return
        for part, image in enumerate(images or [None]):
            yield self._image(record, column, image, part)

    def _column_of(self, values: dict[str, Any]) -> str:
        """Return the configured column. If this is the default column and the row has the column `images` instead,
        return `images`."""
        column = self._config.image_column
        return _IMAGES if column == _DEFAULT_COLUMN and column not in values and _IMAGES in values else column

    def _image(self, record: ListRecord, column: str, image: Any, part: int) -> Listed:
        where = f"row {record.number}"
        if isinstance(image, dict):
            image = image.get("bytes") or image.get("path")
        if not isinstance(image, str) or not image:
            content = f"holds a value of type {type(image).__name__}, not a URI" if image else "holds no URI"
            problem = f"{where}: the column {column!r} {content}."
            raise ConfigError("source.path", self._config.path, problem, "Write a URI, or remove the row.")
        if not is_embedded(image):
            uri = self._uri_policy.uri(image, self._config.path, where)
            return self._rows.ref(self._name, record.number, record.values, uri, part)
        span = record.span_of(image)
        if span is None:
            return LeftOut("rows whose base64 image contains escapes")
        locator = Locator(self._config.path, span, is_text=True)
        num_bytes = None
        with suppress(ValueError):
            # The size of an image in damaged base64 is unknown. The damage is reported when the image is read.
            num_bytes = len(embedded_content(image))
        return replace(
            self._rows.ref(self._name, record.number, record.values, str(locator), part), num_bytes=num_bytes
        )
