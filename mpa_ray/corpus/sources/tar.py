"""Reads the members of a tar strictly: damage raises an error, and is never mistaken for the end of the tar.

Python's tarfile is not suitable. It mistakes a damaged header for the end of the tar, stops after the first of several
concatenated tars, never ends if a size is negative, and holds an extended header of any size in memory.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import BinaryIO

_BLOCK_BYTES = 512
_MAX_EXTENSION_BYTES = 16 * 2**20
"""The largest extended header. An extended header holds a name, or a file's attributes."""
_OCTAL = re.compile(rb"[0-7]*")
_PAX_RECORD = re.compile(rb"(\d{1,9}) ([^=]+)=")
_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
}


class DamagedTar(Exception):
    """The file is not a tar, or is cut off or damaged."""


class Kind(Enum):
    """The type of a member."""

    FILE = "files"
    HARD_LINK = "hard links"
    SYMLINK = "symbolic links"
    SPARSE = "sparse files"
    """Stored without their holes, so their bytes are not contiguous."""
    FOLDER = "folders"
    OTHER = "other members"
    """Devices, and types of members that only one program can read."""


@dataclass(frozen=True)
class Member:
    """An entry of a tar."""

    name: str
    """The name. Bytes that are not UTF-8 become surrogates, as with `surrogateescape`."""
    kind: Kind
    first: int
    """The position of the member's content in the file."""
    num_bytes: int
    target: str = ""
    """The path that a link points to."""
    archive: int = 0
    """If the file consists of several concatenated tars: the number of the member's tar, counted from 0."""


_KINDS = {
    **dict.fromkeys((b"0", b"\0", b"7"), Kind.FILE),
    b"1": Kind.HARD_LINK,
    b"2": Kind.SYMLINK,
    b"5": Kind.FOLDER,
    b"S": Kind.SPARSE,
}
_EXTENSIONS = {b"L": "path", b"K": "linkpath", b"x": "pax", b"X": "pax", b"g": "pax of all"}
"""The types of extended headers, which describe the next member or, for `g`, all members after them."""
_WITHOUT_CONTENT = (b"1", b"2", b"3", b"4", b"5", b"6")
"""Types of members that have no content in the tar, even if their size field is not 0."""


@dataclass
class TarReader:
    """Reads the headers of a tar, or of several concatenated tars."""

    file: BinaryIO
    num_bytes: int
    """The size of the file."""
    has_end: bool = False
    """Whether the blocks of zeros that end a tar follow the last member that was read. A tar without these blocks may
    be cut off."""
    _archive: int = 0
    _position: int = 0
    _attributes: dict[str, str] = field(default_factory=dict)
    """Attributes from extended headers, which apply to the next member."""
    _attributes_of_all: dict[str, str] = field(default_factory=dict)

    def members(self) -> Iterator[Member]:
        """Yield the members in their order.

        Raises:
            DamagedTar: the file is not a tar, or is cut off or damaged.
            OSError: the file cannot be read.
        """
        if not self.num_bytes:
            raise DamagedTar("it has no bytes")
        while header := self._next_header():
            extension = _EXTENSIONS.get(header[156:157])
            if extension is None:
                yield self._member(header)
            else:
                self._read_extension(header, extension)
        if self._attributes:
            raise DamagedTar("it is cut off after an extended header")

    def content(self, member: Member) -> bytes:
        """Return a member's content. Raises OSError."""
        self.file.seek(member.first)
        return self.file.read(member.num_bytes)

    def _next_header(self) -> bytes:
        """Return the next header after any blocks of zeros; empty at the end of the file."""
        while block := self._read(self._position, min(_BLOCK_BYTES, self.num_bytes - self._position)):
            at, self._position = self._position, self._position + len(block)
            if not block.strip(b"\0"):
                self.has_end = True
                continue
            if len(block) < _BLOCK_BYTES:
                raise DamagedTar(f"it is cut off at byte {self.num_bytes}, in a header")
            _check_sum(block, at)
            if self.has_end:
                self._archive, self.has_end, self._attributes_of_all = self._archive + 1, False, {}
            return block
        return b""

    def _member(self, header: bytes) -> Member:
        attributes = {**self._attributes_of_all, **self._attributes}
        self._attributes = {}
        name = attributes.get("GNU.sparse.name") or attributes.get("path") or _name(header)
        kind, num_bytes = self._kind(header, name, attributes), 0
        if header[156:157] not in _WITHOUT_CONTENT:
            size = attributes.get("size")
            num_bytes = _number(header[124:136], name) if size is None else _decimal(size, name)
        member = Member(
            name, kind, self._position, num_bytes, attributes.get("linkpath") or _text(header[157:257]), self._archive
        )
        self._skip(num_bytes, name)
        return member

    def _kind(self, header: bytes, name: str, attributes: dict[str, str]) -> Kind:
        kind = _KINDS.get(header[156:157], Kind.OTHER)
        if header[156:157] == b"S" and header[482]:
            # Further blocks with the positions of holes follow the header.
            while self._read_block(name)[504]:
                pass
        if kind is Kind.FILE and any(key.startswith("GNU.sparse.") for key in attributes):
            return Kind.SPARSE
        return Kind.FOLDER if kind is Kind.FILE and name.endswith("/") else kind

    def _read_extension(self, header: bytes, extension: str) -> None:
        num_bytes = _number(header[124:136], "an extended header")
        if num_bytes > _MAX_EXTENSION_BYTES:
            raise DamagedTar(f"it has an extended header of {num_bytes} bytes")
        first = self._position
        self._skip(num_bytes, "an extended header")
        content = self._read(first, num_bytes)
        if extension == "pax":
            self._attributes |= _pax(content)
        elif extension == "pax of all":
            self._attributes_of_all |= _pax(content)
        else:
            self._attributes[extension] = _text(content)

    def _read_block(self, name: str) -> bytes:
        first = self._position
        self._skip(_BLOCK_BYTES, name)
        return self._read(first, _BLOCK_BYTES)

    def _skip(self, num_bytes: int, name: str) -> None:
        """Move past `num_bytes` of content, and past the zeros that fill its last block."""
        if self._position + num_bytes > self.num_bytes:
            raise DamagedTar(f"it is cut off at byte {self.num_bytes}, in {name}")
        self._position += -(-num_bytes // _BLOCK_BYTES) * _BLOCK_BYTES

    def _read(self, first: int, num_bytes: int) -> bytes:
        if num_bytes <= 0:
            return b""
        self.file.seek(first)
        content = self.file.read(num_bytes)
        if len(content) < num_bytes:
            raise OSError("it became shorter while it was read")
        return content


def _check_sum(header: bytes, at: int) -> None:
    others = header[:148] + b" " * 8 + header[156:]
    # Some old programs computed the checksum from signed bytes.
    sums = (sum(others), sum(others) - 256 * sum(byte > 127 for byte in others))
    if _OCTAL.fullmatch(digits := _until_zero(header[148:156]).strip()) and digits and int(digits, 8) in sums:
        return
    if at:
        raise DamagedTar(f"it is damaged at byte {at}, where a header should be")
    compression = next((name for magic, name in _COMPRESSED.items() if header.startswith(magic)), None)
    raise DamagedTar(f"it is compressed with {compression}" if compression else "it does not begin with a header")


def _number(digits: bytes, name: str) -> int:
    """Decode a size: octal, or binary if its first bit is set."""
    if digits[0] & 0x80:
        number = int.from_bytes(bytes([digits[0] & 0x7F]) + digits[1:]) if digits[0] == 0x80 else -1
    else:
        octal = _until_zero(digits).strip()
        number = int(octal or b"0", 8) if _OCTAL.fullmatch(octal) else -1
    if number < 0:
        raise DamagedTar(f"{name} has no valid size")
    return number


def _decimal(digits: str, name: str) -> int:
    if not re.fullmatch(r"[0-9]{1,19}", digits):
        raise DamagedTar(f"{name} has no valid size")
    return int(digits)


def _pax(content: bytes) -> dict[str, str]:
    """Decode the records of an extended header. Each record is `LENGTH KEY=VALUE` and a newline."""
    attributes: dict[str, str] = {}
    position = 0
    while position < len(content) and content[position]:
        record = _PAX_RECORD.match(content, position)
        end = position + int(record[1]) if record else 0
        if record is None or not record.end() < end <= len(content) or content[end - 1 : end] != b"\n":
            raise DamagedTar("it has a damaged extended header")
        key, value = record[2].decode(errors="replace"), content[record.end() : end - 1]
        # Keep only the attributes that are used. Others, such as an icon, may be large.
        if key in ("path", "linkpath", "size") or key.startswith("GNU.sparse."):
            attributes[key] = _text(value)
        position = end
    return attributes


def _name(header: bytes) -> str:
    name = _text(header[:100])
    prefix = _text(header[345:500]) if header[257:263] == b"ustar\0" else ""
    return f"{prefix}/{name}" if prefix else name


def _text(content: bytes) -> str:
    return _until_zero(content).decode(errors="surrogateescape")


def _until_zero(content: bytes) -> bytes:
    return content.partition(b"\0")[0]
