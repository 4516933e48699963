"""Images that are generated when they are read, for measurements of speed that need no storage."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

from mpa_ray.corpus.places.place import Entry
from mpa_ray.errors import ConfigError

_SIDE = 16
_DIGITS = 9


class Synthetic:
    """`synthetic://1000` contains 1000 different PNG files of 16 x 16 pixels."""

    def walk(self, root: str, after: str = "", num_listers: int = 1) -> Iterator[Entry]:  # noqa: ARG002
        count = root.removeprefix("synthetic://")
        if not count.isdigit():
            raise ConfigError("source.path", root, "gives no number of images.", "Write synthetic://1000.")
        start = int(after.removesuffix(".png")) + 1 if after else 0
        for number in range(start, int(count)):
            name = f"{number:0{_DIGITS}d}.png"
            yield Entry(name, f"synthetic://{name}", len(_png(number)))

    def size(self, uri: str) -> int:
        return len(self.read(uri))

    def read(self, uri: str, first: int = 0, num_bytes: int | None = None) -> bytes:
        number = uri.removeprefix("synthetic://").removesuffix(".png")
        if not number.isdigit():
            raise FileNotFoundError(uri)
        content = _png(int(number))
        return content[first : None if num_bytes is None else first + num_bytes]


def _png(number: int) -> bytes:
    """A grey PNG image whose first pixels encode the number."""
    row = b"\0" + number.to_bytes(8) + bytes(_SIDE - 8)
    header = struct.pack(">IIBBBBB", _SIDE, _SIDE, 8, 0, 0, 0, 0)
    pixels = zlib.compress(row * _SIDE, 1)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", pixels) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
