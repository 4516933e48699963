"""Finds the record batches of an Arrow stream and the number of their nulls from the headers alone, which pyarrow
cannot do.

The layout is Arrow's "IPC streaming format": continuation marker, length of the header, header, body.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import BinaryIO, cast

import pyarrow as pa

from mpa_ray.corpus.locator import Span
from mpa_ray.corpus.places.places import Places
from mpa_ray.corpus.sources.arrow_rows import with_bytes_for_text

_CONTINUATION = b"\xff\xff\xff\xff"
_END = _CONTINUATION + b"\0\0\0\0"
_DICTIONARY_BATCH, _RECORD_BATCH = 2, 3
"""Values of `MessageHeader` in Arrow's Message.fbs."""
_MAX_ROWS_PER_BYTE = 1000
"""If a header states more rows per byte of its batch than this, it is damaged: a batch with images has far fewer rows,
even if its offsets are compressed."""


@dataclass(frozen=True)
class BatchSpan:
    """The position of a record batch in a stream."""

    span: Span
    num_rows: int
    num_nulls: list[int]
    """The number of nulls in each field. A field comes before its children; `field_position` finds the position of a
    field."""


def record_batches(file: BinaryIO) -> Iterator[BatchSpan]:
    """Yield the positions of an Arrow stream's record batches. Only the headers are read.

    Raises:
        pa.ArrowInvalid: the file is not an Arrow stream.
    """
    for message in _messages(file):
        if message.kind == _RECORD_BATCH:
            batch = message.header
            num_rows = batch.int64(0)
            if not 0 <= num_rows <= _MAX_ROWS_PER_BYTE * message.span.num_bytes:
                raise pa.ArrowInvalid(f"a batch of {num_rows} rows in {message.span.num_bytes} bytes")
            yield BatchSpan(message.span, num_rows, [nulls for _, nulls in batch.pairs(1)])


def field_position(schema: pa.Schema, path: list[str]) -> int | None:
    """Return a field's position in `BatchSpan.num_nulls`; None if the schema has no such field.

    Args:
        schema: The schema of the stream.
        path: The name of a column, or the names that lead from a column to a nested field.
    """
    position, fields = 0, list(schema)
    for depth, name in enumerate(path):
        for field in fields:
            if field.name == name:
                break
            position += _num_fields(field.type)
        else:
            return None
        if depth + 1 < len(path):
            position, fields = position + 1, _children(field.type)
    return position


@dataclass(frozen=True)
class StreamHead:
    """The parts of an Arrow stream that are needed to decode its record batches."""

    schema: pa.Schema
    schema_message: bytes
    dictionaries: tuple[tuple[int, bytes], ...]
    """The positions and messages of the dictionaries of dictionary-encoded columns."""

    @classmethod
    def read(cls, places: Places, uri: str) -> StreamHead:
        """Read the schema at the start of a stream, and the dictionaries anywhere in the stream.

        Raises:
            pa.ArrowInvalid: the file is not an Arrow stream.
        """
        with places.open(uri) as file:
            first = next(_messages(file), None)
            if first is None:
                raise pa.ArrowInvalid("it is empty")
            file.seek(0)
            message = file.read(first.span.num_bytes)
            # pyarrow's read_schema would abort the process if the message were of another kind.
            schema = pa.ipc.open_stream(pa.py_buffer(message)).schema
            dictionaries = []
            if _has_dictionaries(schema):
                file.seek(0)
                spans = [m.span for m in _messages(file) if m.kind == _DICTIONARY_BATCH]
                for span in spans:
                    file.seek(span.first)
                    dictionaries.append((span.first, file.read(span.num_bytes)))
        return cls(schema, message, tuple(dictionaries))

    def read_batch(self, content: bytes, position: int) -> pa.RecordBatch:
        """Decode a record batch from its bytes.

        Args:
            content: The message of the batch.
            position: The message's position in the stream. Dictionaries after this position do not apply.

        Raises:
            pa.ArrowInvalid: the bytes are not a record batch.
        """
        before = [message for first, message in self.dictionaries if first < position]
        try:
            if before:
                stream = b"".join([self.schema_message, *before, content, _END])
                batch = pa.ipc.open_stream(pa.py_buffer(stream)).read_next_batch()
            else:
                batch = pa.ipc.read_record_batch(pa.ipc.read_message(pa.py_buffer(content)), self.schema)
        except (EOFError, StopIteration):
            raise pa.ArrowInvalid("a batch is cut off") from None
        # Reading a cell at a wrong offset would abort the process. Check text as bytes, since it may not be UTF-8.
        batch.validate()
        for column in batch.columns:
            with_bytes_for_text(column).validate(full=True)
        return batch


@dataclass(frozen=True)
class _Message:
    span: Span
    content: bytes
    """The message's metadata, a FlatBuffer."""

    @cached_property
    def kind(self) -> int:
        return _Table.root(self.content).uint8(1)

    @cached_property
    def header(self) -> _Table:
        return _Table.root(self.content).table(2)


def _messages(file: BinaryIO) -> Iterator[_Message]:
    num_bytes_of_file = file.seek(0, io.SEEK_END)
    first = file.seek(0)
    while (start := file.read(8))[:4] == _CONTINUATION:
        (header_bytes,) = struct.unpack("<i", start[4:])
        if header_bytes == 0:
            if file.read(1):
                raise pa.ArrowInvalid("bytes after its end")
            return
        if header_bytes < 0:
            raise pa.ArrowInvalid("a message of negative length")
        content = file.read(header_bytes)
        num_bytes = 8 + header_bytes + _Table.root(content).int64(3)
        if num_bytes < 8 + header_bytes:
            raise pa.ArrowInvalid("a message of negative length")
        if first + num_bytes > num_bytes_of_file:
            raise pa.ArrowInvalid("cut off")
        yield _Message(Span(first, num_bytes), content)
        first += num_bytes
        file.seek(first)
    if not start:
        raise pa.ArrowInvalid("cut off: it has no end marker")
    raise pa.ArrowInvalid("not an Arrow stream, or one written before Arrow 0.15")


def _children(kind: pa.DataType) -> list[pa.Field]:
    if isinstance(kind, pa.BaseExtensionType):
        return _children(kind.storage_type)
    if pa.types.is_dictionary(kind):
        return []
    return [kind.field(index) for index in range(kind.num_fields)]


def _num_fields(kind: pa.DataType) -> int:
    return 1 + sum(_num_fields(child.type) for child in _children(kind))


def _has_dictionaries(schema: pa.Schema) -> bool:
    def contains(kind: pa.DataType) -> bool:
        if isinstance(kind, pa.BaseExtensionType):
            return contains(kind.storage_type)
        return pa.types.is_dictionary(kind) or any(contains(child.type) for child in _children(kind))

    return any(contains(field.type) for field in schema)


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

    def pairs(self, field: int) -> list[tuple[int, int]]:
        """Read a vector of structs with two 64-bit integers."""
        at = self._at(field)
        if at == self.position:
            return []
        at += struct.unpack_from("<I", self.content, at)[0]
        (count,) = struct.unpack_from("<I", self.content, at)
        if at + 4 + 16 * count > len(self.content):
            raise pa.ArrowInvalid("a header that is cut off")
        return [struct.unpack_from("<qq", self.content, at + 4 + 16 * number) for number in range(count)]

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
