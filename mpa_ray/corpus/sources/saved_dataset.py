"""A source that was written by `Dataset.save_to_disk` of Hugging Face's `datasets`: a folder of Arrow streams."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import partial
from typing import Any

import pyarrow as pa

from mpa_ray.config import SourceConfig
from mpa_ray.corpus.locator import Locator
from mpa_ray.corpus.ordered_prefetch import ordered_prefetch
from mpa_ray.corpus.places.places import Places
from mpa_ray.corpus.sources.arrow_rows import rows_of
from mpa_ray.corpus.sources.arrow_stream import BatchSpan, StreamHead, field_position, record_batches
from mpa_ray.corpus.sources.columns import ImageColumn, item_of, path_in
from mpa_ray.corpus.sources.damage import unreadable, without_damaged
from mpa_ray.corpus.sources.source import Listed, Rows, UriPolicy, images_after
from mpa_ray.errors import ConfigError
from mpa_ray.records import ImageRef
from mpa_ray.textual import parse_json

STATE_FILE = "state.json"


class SavedDataset:
    """Images in record batches. A locator contains the batch's byte range, so a shard reads only its own batches."""

    def __init__(self, config: SourceConfig, places: Places) -> None:
        self._config, self._places = config, places
        self._rows, self._uri_policy = Rows(config), UriPolicy(config)

    def images(self, after: ImageRef | None = None) -> Iterator[Listed]:
        images = ordered_prefetch(
            (partial(self._images_in, name) for name in self._file_names()), self._config.num_listers
        )
        return images if after is None else images_after(images, after, self._config.path)

    def _file_names(self) -> list[str]:
        state = f"{self._config.path.rstrip('/')}/{STATE_FILE}"
        try:
            files = parse_json(self._places.of(state).read(state))["_data_files"]
            return [str(file["filename"]) for file in files]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                "source.path",
                self._config.path,
                f"has no valid {STATE_FILE} ({error}).",
                "Give a folder that Dataset.save_to_disk wrote.",
            ) from error

    def _images_in(self, name: str) -> Iterator[Listed]:
        self._uri_policy.check_below(name, STATE_FILE)
        uri = f"{self._config.path.rstrip('/')}/{name}"
        return without_damaged(self._config, name, self._listing(uri, name))

    def _listing(self, uri: str, name: str) -> Iterator[Listed]:
        try:
            yield from self._images_of(uri, name)
        except (OSError, ValueError, struct.error, pa.ArrowException) as error:
            raise unreadable(self._config, name, uri, "an Arrow stream", error) from error

    def _images_of(self, uri: str, name: str) -> Iterator[ImageRef]:
        place, setting = self._places.of(uri), self._config.image_column
        head = StreamHead.read(self._places, uri)
        self._rows.check(head.schema.names, name)
        column = ImageColumn.of(head.schema, setting, name)
        with self._places.open(uri) as file:
            number = 0
            for batch in record_batches(file):
                names_files = _may_name_files(batch, head.schema, column)
                columns = list(dict.fromkeys([*self._rows.columns, *([column.name] if names_files else [])]))
                values: list[dict[str, Any]] = [{}] * batch.num_rows
                if columns:
                    content = place.read(uri, batch.span.first, batch.span.num_bytes)
                    table = head.read_batch(content, batch.span.first).select(columns)
                    values = rows_of(table)
                for row, cells in enumerate(values):
                    path = path_in(item_of(cells.get(column.name), column.item)) if names_files else None
                    if path is None:
                        locator = str(Locator(uri, batch.span, row, setting))
                    else:
                        locator = self._uri_policy.uri(path, uri, f"{name}, row {number}")
                    yield self._rows.ref(name, number, cells, locator)
                    number += 1


def _may_name_files(batch: BatchSpan, schema: pa.Schema, column: ImageColumn) -> bool:
    """Whether rows of a batch may name a file instead of holding the image."""
    if column.kind != "struct":
        return column.kind == "text"
    if column.item is not None:
        return True
    positions = field_position(schema, [column.name]), field_position(schema, [column.name, "bytes"])
    nulls = [None if at is None or at >= len(batch.num_nulls) else batch.num_nulls[at] for at in positions]
    return nulls != [0, 0]
