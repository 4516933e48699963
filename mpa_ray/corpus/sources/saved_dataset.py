"""A source that Hugging Face's `Dataset.save_to_disk` wrote: a folder of Arrow streams."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO, cast

import pyarrow as pa

from mpa_ray.config import SourceConfig
from mpa_ray.corpus.locator import Locator, Span
from mpa_ray.corpus.ordered_prefetch import ordered_prefetch
from mpa_ray.corpus.places.places import Places
from mpa_ray.corpus.sources.arrow_rows import rows_of
from mpa_ray.corpus.sources.source import Rows, UriPolicy, images_after
from mpa_ray.errors import ConfigError
from mpa_ray.records import ImageRef
from mpa_ray.textual import parse_json

STATE_FILE = "state.json"
_CONTINUATION = b"\xff\xff\xff\xff"
_RECORD_BATCH = 3
"""`MessageHeader.RecordBatch` of Arrow's Message.fbs."""


class SavedDataset:
    """Images in record batches. A locator gives the bytes of the batch, so a shard reads only its own batches."""

    def __init__(self, config: SourceConfig, places: Places) -> None:
        self._config, self._places = config, places
        self._rows, self._uri_policy = Rows(config), UriPolicy(config)

    def images(self, after: ImageRef | None = None) -> Iterator[ImageRef]:
        images = ordered_prefetch(
            (partial(self._images_in, name) for name in self._file_names()), self._config.num_listers
        )
        return images if after is None else images_after(images, after, self._config.path)

    def _file_names(self) -> list[str]:
        state = f"{self._config.path.rstrip('/')}/{STATE_FILE}"
        try:
            files = parse_json(self._places.of(state).read(state))["_data_files"]
            return [file["filename"] for file in files]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                "source.path",
                self._config.path,
                f"has no valid {STATE_FILE} ({error}).",
                "Give a folder that Dataset.save_to_disk wrote.",
            ) from error

    def _images_in(self, name: str) -> Iterator[ImageRef]:
        self._uri_policy.check_below(name, STATE_FILE)
        uri = f"{self._config.path.rstrip('/')}/{name}"
        try:
            yield from self._images_of(uri, name)
        except (OSError, ValueError, struct.error) as error:
            raise ConfigError(
                "source.path",
                self._config.path,
                f"{name} cannot be read as an Arrow stream ({error}).",
                "Save the dataset again.",
            ) from error

    def _images_of(self, uri: str, name: str) -> Iterator[ImageRef]:
        place, column = self._places.of(uri), self._config.image_column
        schema = stream_schema(self._places, uri)
        self._rows.check(schema.names, name)
        has_uris = pa.types.is_string(kind := schema.field(column).type) or pa.types.is_large_string(kind)
        columns = [*self._rows.columns, *([column] if has_uris else [])]
        with self._places.open(uri) as file:
            number = 0
            for batch in record_batches(file):
                content = place.read(uri, batch.span.first, batch.span.num_bytes) if columns else b""
                values = _values(content, schema, columns) if columns else [{}] * batch.num_rows
                for row in range(batch.num_rows):
                    locator = (
                        self._uri_policy.uri(values[row][column], uri, f"{name}, row {number}")
                        if has_uris
                        else str(Locator(uri, batch.span, row, column))
                    )
                    yield self._rows.ref(name, number, values[row], locator)
                    number += 1


def stream_schema(places: Places, uri: str) -> pa.Schema:
    """Read the schema at the start of an Arrow stream."""
    with places.open(uri) as file:
        return pa.ipc.read_schema(pa.ipc.read_message(file))


def read_batch(content: bytes, schema: pa.Schema) -> pa.RecordBatch:
    """Decode a record batch from its bytes."""
    return pa.ipc.read_record_batch(pa.ipc.read_message(pa.py_buffer(content)), schema)


@dataclass(frozen=True)
class BatchSpan:
    """The position of a record batch in a stream."""

    span: Span
    num_rows: int


def record_batches(file: BinaryIO) -> Iterator[BatchSpan]:
    """Yield the positions of an Arrow stream's record batches, reading only their headers. pyarrow cannot do that.

    The layout is Arrow's "IPC streaming format": continuation marker, length of the header, header, body.
    """
    first = 0
    while (start := file.read(8))[:4] == _CONTINUATION:
        (header_bytes,) = struct.unpack("<i", start[4:])
        if header_bytes == 0:
            return
        message = _Table.root(file.read(header_bytes))
        num_bytes = 8 + header_bytes + message.int64(3)
        if message.uint8(1) == _RECORD_BATCH:
            yield BatchSpan(Span(first, num_bytes), message.table(2).int64(0))
        first += num_bytes
        file.seek(first)
    if start:
        raise pa.ArrowInvalid("not an Arrow stream, or one written before Arrow 0.15")


@dataclass(frozen=True)
class _Table:
    """A table in a FlatBuffers message. Its fields are numbered as in the schema file."""

    content: bytes
    position: int

    @classmethod
    def root(cls, content: bytes) -> _Table:
        return cls(content, struct.unpack_from("<I", content)[0])

    def int64(self, field: int) -> int:
        return self._value("<q", field)

    def uint8(self, field: int) -> int:
        return self._value("<B", field)

    def table(self, field: int) -> _Table:
        at = self._at(field)
        return _Table(self.content, at + struct.unpack_from("<I", self.content, at)[0])

    def _value(self, form: str, field: int) -> int:
        """Read a number. A field with the default value 0 is not stored."""
        at = self._at(field)
        return cast(int, struct.unpack_from(form, self.content, at)[0]) if at != self.position else 0

    def _at(self, field: int) -> int:
        vtable = self.position - struct.unpack_from("<i", self.content, self.position)[0]
        (vtable_bytes,) = struct.unpack_from("<H", self.content, vtable)
        slot = 4 + 2 * field
        offset = struct.unpack_from("<H", self.content, vtable + slot)[0] if slot < vtable_bytes else 0
        return self.position + cast(int, offset)


def _values(content: bytes, schema: pa.Schema, columns: list[str]) -> list[dict[str, Any]]:
    return rows_of(read_batch(content, schema).select(columns))
