"""Reads the records of a list file (text, CSV or JSON), each with its position in the file."""

from __future__ import annotations

import codecs
import csv
import json
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from mpa_ray.corpus.locator import Span
from mpa_ray.textual import parse_json

TEXT, CSV, JSON = (".txt",), (".csv", ".tsv"), (".jsonl", ".ndjson", ".json")
_BOM = codecs.BOM_UTF8
_CHUNK_BYTES = 2**20
_SPACE = b" \t\r\n"
_STRUCTURE = re.compile(rb'["\\\[\]{}]')
"""The characters that decide where a JSON object ends."""


class BadRecord(Exception):
    """A record of a list cannot be read."""

    def __init__(self, problem: str, remedy: str) -> None:
        self.problem, self.remedy = problem, remedy
        super().__init__(problem)


@dataclass(frozen=True)
class ListRecord:
    """A row of a list."""

    number: int
    """The number of the record, counted from 1. In text and JSON lines, this is the number of the line."""
    values: dict[str, Any]
    first: int
    """The position of the record's first byte in the file."""
    raw: bytes

    def span_of(self, text: str) -> Span | None:
        """Return the span of the file that holds a text of the record; None if the text cannot be found."""
        escaped = json.dumps(text)[1:-1]
        for form in (text, escaped, escaped.replace("/", r"\/")):
            content = form.encode(errors="surrogateescape")
            if (at := self.raw.find(content)) >= 0:
                return Span(self.first + at, len(content))
        return None


def text_records(file: BinaryIO, column: str) -> Iterator[ListRecord]:
    """Yield the lines of a text file that are not blank, each as the value of a column."""
    for number, (first, raw) in enumerate(_lines(file), 1):
        if line := raw.decode().strip():
            yield ListRecord(number, {column: line}, first, raw)


def csv_records(file: BinaryIO, delimiter: str) -> tuple[Sequence[str], Iterator[ListRecord]]:
    """Return the header of a CSV file, and an iterator over its rows."""
    # A cell may hold an image in base64.
    csv.field_size_limit(sys.maxsize)
    lines = _TrackedLines(_lines(file))
    reader = csv.DictReader(lines, delimiter=delimiter)
    names = list(reader.fieldnames or ())
    lines.take()

    def records() -> Iterator[ListRecord]:
        for number, values in enumerate(reader, 1):
            first, raw = lines.take()
            yield ListRecord(number, values, first, raw)

    return names, records()


def json_records(file: BinaryIO, chunk_bytes: int = _CHUNK_BYTES) -> Iterator[ListRecord]:
    """Yield the objects of JSON lines or of a JSON list. A list is recognised by its first character.

    Args:
        file: The file.
        chunk_bytes: A list is read in chunks of this size. If an object is larger, the chunks grow until it fits.

    Raises:
        BadRecord: a record is not JSON, or not an object.
    """
    first = file.read(len(_BOM))
    start = len(_BOM) if first == _BOM else 0
    file.seek(start)
    while (character := file.read(1)) and character in _SPACE:
        continue
    if character == b"[":
        yield from _list_records(file, chunk_bytes)
        return
    file.seek(0)
    for number, (position, raw) in enumerate(_lines(file), 1):
        if raw.strip():
            yield _json_record(number, position, raw, "Write one object per line, or a list of objects.")


def _json_record(number: int, first: int, raw: bytes, remedy: str) -> ListRecord:
    try:
        values = parse_json(raw.decode())
    except UnicodeDecodeError:
        raise
    except ValueError as error:
        raise BadRecord(f"row {number} is not JSON ({error}).", remedy) from error
    if not isinstance(values, dict):
        raise BadRecord(f"row {number} is not a JSON object.", remedy)
    return ListRecord(number, values, first, raw)


def _lines(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Yield the position and the bytes of each line of a file. Every kind of line ending is recognised."""
    position = 0
    for chunk in file:
        for line in chunk.splitlines(keepends=True):
            start = len(_BOM) if position == 0 and line.startswith(_BOM) else 0
            yield position + start, line[start:]
            position += len(line)


@dataclass
class _TrackedLines(Iterator[str]):
    """Decodes lines, and keeps the bytes of the lines that were read since the last call to `take`."""

    lines: Iterator[tuple[int, bytes]]
    _taken: list[tuple[int, bytes]] = field(default_factory=list)

    def __next__(self) -> str:
        position, raw = next(self.lines)
        self._taken.append((position, raw))
        return raw.decode()

    def take(self) -> tuple[int, bytes]:
        """Return the position and the bytes of the lines that were read since the last call."""
        taken, self._taken = self._taken, []
        return (taken[0][0] if taken else 0), b"".join(raw for _, raw in taken)


def _list_records(file: BinaryIO, chunk_bytes: int) -> Iterator[ListRecord]:
    """Yield the objects of a JSON list whose opening bracket was read. Only one object at a time is in memory."""
    remedy = 'Write a list of objects, such as [{"image": "a.png"}].'
    objects = _Objects(file, file.tell(), chunk_bytes)
    number = 0
    while (following := objects.skip_space()) not in (b"]", b""):
        if number and following != b",":
            raise BadRecord(f"row {number} is followed by {following!r}, not by a comma.", remedy)
        if number:
            objects.position += 1
            following = objects.skip_space()
        number += 1
        if following != b"{":
            raise BadRecord(f"row {number} is not a JSON object.", remedy)
        first, raw = objects.take(number)
        yield _json_record(number, first, raw, remedy)
    if not following:
        raise BadRecord(f"the list has no end after row {number}.", "Fetch the list again.")


@dataclass
class _Objects:
    """Finds the ends of JSON objects in a file, of which it reads one chunk at a time."""

    file: BinaryIO
    first: int
    """The position of the buffer in the file."""
    chunk_bytes: int
    buffer: bytes = b""
    position: int = 0
    """The current position in the buffer."""

    def skip_space(self) -> bytes:
        """Go to the next character that is not a space, and return it; empty at the end of the file."""
        while True:
            while self.position < len(self.buffer) and self.buffer[self.position] in _SPACE:
                self.position += 1
            if self.position < len(self.buffer):
                return self.buffer[self.position : self.position + 1]
            if not self._read_more():
                return b""

    def take(self, number: int) -> tuple[int, bytes]:
        """Return the position in the file and the bytes of the object that begins at the current position.

        Raises:
            BadRecord: the object has no end.
        """
        end, depth, in_string = self.position, 0, False
        while True:
            match = _STRUCTURE.search(self.buffer, end)
            if match is None or (match[0] == b"\\" and match.end() == len(self.buffer)):
                end = len(self.buffer) if match is None else match.start()
                start = self.position
                if not self._read_more():
                    raise BadRecord(f"row {number} is not JSON (it has no end).", "Fetch the list again.")
                end -= start
                continue
            end = match.end()
            character = match[0]
            if character == b"\\":
                end += 1
            elif character == b'"':
                in_string = not in_string
            elif not in_string:
                depth += 1 if character in b"[{" else -1
                if depth == 0:
                    raw = self.buffer[self.position : end]
                    first, self.position = self.first + self.position, end
                    return first, raw

    def _read_more(self) -> bool:
        """Drop the bytes before the position, and read more bytes into the buffer. Returns False if there are none."""
        chunk = self.file.read(max(self.chunk_bytes, len(self.buffer)))
        self.first += self.position
        self.buffer, self.position = self.buffer[self.position :] + chunk, 0
        return bool(chunk)
