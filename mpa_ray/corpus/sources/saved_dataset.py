"""A source that Hugging Face's `Dataset.save_to_disk` has written: Arrow streams in a folder."""

from __future__ import annotations

import json
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
from mpa_ray.corpus.sources.source import Rows, UriPolicy, behind
from mpa_ray.errors import ConfigError
from mpa_ray.records import ImageRef

STATE_FILE = "state.json"
_CONTINUATION = b"\xff\xff\xff\xff"
_RECORD_BATCH = 3
"""`MessageHeader.RecordBatch` of Arrow's Message.fbs."""


class SavedDataset:
    """Each image's locator names the bytes of its record batch, so that a shard reads no more than its batches."""

    def __init__(self, config: SourceConfig, places: Places) -> None:
        self._config, self._places = config, places
        self._rows, self._uri_policy = Rows(config), UriPolicy(config)

    def images(self, after: ImageRef | None = None) -> Iterator[ImageRef]:
        found = ordered_prefetch(
            (partial(self._images_in, name) for name in self._file_names()), self._config.num_listers
        )
        return found if after is None else behind(found, after, self._config.path)

    def _file_names(self) -> list[str]:
        state = f"{self._config.path.rstrip('/')}/{STATE_FILE}"
        try:
            files = json.loads(self._places.of(state).read(state))["_data_files"]
            return [file["filename"] for file in files]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                "source.path",
                self._config.path,
                f"has no {STATE_FILE} of a saved dataset ({error}).",
                "Give a folder that Dataset.save_to_disk wrote.",
            ) from error

    def _images_in(self, name: str) -> Iterator[ImageRef]:
        self._uri_policy.below(name, STATE_FILE)
        uri = f"{self._config.path.rstrip('/')}/{name}"
        try:
            yield from self._images_of(uri, name)
        except (OSError, pa.ArrowInvalid, struct.error) as error:
            raise ConfigError(
                "source.path",
                self._config.path,
                f"{name} is not to be read as Arrow ({error}).",
                "Save the dataset anew.",
            ) from error

    def _images_of(self, uri: str, name: str) -> Iterator[ImageRef]:
        place, column = self._places.of(uri), self._config.image_column
        schema = stream_schema(self._places, uri)
        self._rows.check(schema.names, name)
        has_uris = pa.types.is_string(kind := schema.field(column).type) or pa.types.is_large_string(kind)
        wanted = [*self._rows.columns, *([column] if has_uris else [])]
        with self._places.open(uri) as file:
            number = 0
            for batch in record_batches(file):
                content = place.read(uri, batch.span.first, batch.span.num_bytes) if wanted else b""
                values = _values(content, schema, wanted) if wanted else [{}] * batch.num_rows
                for row in range(batch.num_rows):
                    locator = (
                        self._uri_policy.uri(values[row][column], uri, f"{name}, row {number}")
                        if has_uris
                        else str(Locator(uri, batch.span, row, column))
                    )
                    yield self._rows.ref(name, number, values[row], locator)
                    number += 1


def stream_schema(places: Places, uri: str) -> pa.Schema:
    """The schema at the beginning of an Arrow stream."""
    with places.open(uri) as file:
        return pa.ipc.read_schema(pa.ipc.read_message(file))


def read_batch(content: bytes, schema: pa.Schema) -> pa.RecordBatch:
    """The record batch in these bytes of a stream."""
    return pa.ipc.read_record_batch(pa.ipc.read_message(pa.py_buffer(content)), schema)


@dataclass(frozen=True)
class BatchPlace:
    """Where a stream holds a record batch."""

    span: Span
    num_rows: int


def record_batches(file: BinaryIO) -> Iterator[BatchPlace]:
    """The batches of an Arrow stream; only their headers are read, which pyarrow does not offer.

    The layout is that of Arrow's "IPC streaming format": continuation, length of the header, header, body.
    """
    first = 0
    while (start := file.read(8))[:4] == _CONTINUATION:
        (header_bytes,) = struct.unpack("<i", start[4:])
        if header_bytes == 0:
            return
        message = _Table.root(file.read(header_bytes))
        num_bytes = 8 + header_bytes + message.int64(3)
        if message.uint8(1) == _RECORD_BATCH:
            yield BatchPlace(Span(first, num_bytes), message.table(2).int64(0))
        first += num_bytes
        file.seek(first)
    if start:
        raise pa.ArrowInvalid("no Arrow stream, or one from before Arrow 0.15")


@dataclass(frozen=True)
class _Table:
    """A table of a FlatBuffers message; fields by their number in the schema file."""

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
        """A number; one that equals its default, 0, is not stored."""
        at = self._at(field)
        return cast(int, struct.unpack_from(form, self.content, at)[0]) if at != self.position else 0

    def _at(self, field: int) -> int:
        vtable = self.position - struct.unpack_from("<i", self.content, self.position)[0]
        (vtable_bytes,) = struct.unpack_from("<H", self.content, vtable)
        slot = 4 + 2 * field
        offset = struct.unpack_from("<H", self.content, vtable + slot)[0] if slot < vtable_bytes else 0
        return self.position + cast(int, offset)


def _values(content: bytes, schema: pa.Schema, columns: list[str]) -> list[dict[str, Any]]:
    return cast(list[dict[str, Any]], read_batch(content, schema).select(columns).to_pylist())
