"""Recognises variants of image formats that Pillow cannot decode even if the files are undamaged."""

from __future__ import annotations

import io
import re
import struct

from PIL.TiffImagePlugin import COMPRESSION_INFO, ImageFileDirectory_v2

_UNKNOWN_VARIANT = re.compile(
    "unsupported|not (?:yet )?supported|not (?:installed|available)|cannot handle|unknown pixel mode",
    re.IGNORECASE,
)
"""Matches Pillow's messages about variants that it cannot decode. Pillow has no error class for them."""
_FRAMES_OF_JPEG = {
    **dict.fromkeys((0xC3, 0xC7, 0xCB, 0xCF), "lossless JPEG"),
    **dict.fromkeys((0xC5, 0xC6, 0xCD, 0xCE), "hierarchical JPEG"),
    0xF7: "JPEG-LS",
}
"""The types of JPEG frame that libjpeg does not decode, by the second byte of their marker."""
_START_OF_SCAN = 0xDA
_WITHOUT_LENGTH = (0x01, *range(0xD0, 0xD9))
"""JPEG markers that are not followed by a length and a segment."""
_COMPRESSION = 259
"""The TIFF tag for the compression."""


def unread_variant(format_name: str, content: bytes, error: Exception) -> str | None:
    """If Pillow refused a file because it cannot decode the file's variant, return the variant's name. Otherwise, the
    file is damaged: return None."""
    if _UNKNOWN_VARIANT.search(str(error)):
        return f"{format_name}: {type(error).__name__}: {error}"
    if format_name == "JPEG":
        return _jpeg_variant(content)
    if format_name == "PNG":
        return "CgBI, Apple's variant of PNG" if content[12:16] == b"CgBI" else None
    return _tiff_variant(content) if format_name == "TIFF" else None


def _jpeg_variant(content: bytes) -> str | None:
    position = 2
    while position + 4 <= len(content) and content[position] == 0xFF:
        marker = content[position + 1]
        if marker in _FRAMES_OF_JPEG:
            return _FRAMES_OF_JPEG[marker]
        if marker == _START_OF_SCAN:
            return None
        if marker == 0xFF:
            position += 1
        elif marker in _WITHOUT_LENGTH:
            position += 2
        else:
            position += 2 + struct.unpack_from(">H", content, position + 2)[0]
    return None


def _tiff_variant(content: bytes) -> str | None:
    file = io.BytesIO(content)
    try:
        directory = ImageFileDirectory_v2(file.read(8))
        file.seek(directory.next)
        directory.load(file)
        compression = directory.get(_COMPRESSION, 1)
    except Exception:  # noqa: BLE001
        # Like Pillow's other plugins, the TIFF plugin raises errors of any class on damaged data.
        return None
    # Pillow knows the compression number of WebP, but the libtiff in its wheels cannot decode WebP.
    if COMPRESSION_INFO.get(compression) in (None, "webp"):
        return f"TIFF with compression {compression}"
    return None
