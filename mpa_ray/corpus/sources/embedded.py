"""Images inside text: base64 and data: URIs."""

from __future__ import annotations

import base64
import binascii
import re
from urllib.parse import unquote_to_bytes

from mpa_ray.imaging.decode import FORMATS, recognise_format

_MIN_CHARACTERS = 48
"""Shorter text is never an image in base64."""
_BEGINNING_CHARACTERS = 512
_BASE64 = re.compile(r"[A-Za-z0-9+/_\-\s]+=*\s*")
_URL_SAFE = str.maketrans("-_", "+/")
_EXPECTED = frozenset({*FORMATS, "HEIC"} - {"DIB", "PPM"})
"""Formats with distinctive first bytes. A path may be valid base64, but it does not decode to such bytes by chance."""


def is_data_uri(text: str) -> bool:
    """Whether a text is a data: URI."""
    return text[:5].lower() == "data:" and "," in text and text[5:7] != "//"


def is_base64_image(text: str) -> bool:
    """Whether a text is an image file in base64, judged by its length, its characters and the file's first bytes."""
    if len(text) < _MIN_CHARACTERS or not _BASE64.fullmatch(text[:_BEGINNING_CHARACTERS]):
        return False
    characters = "".join(text[:_BEGINNING_CHARACTERS].split())
    try:
        beginning = decode_base64(characters[: len(characters) // 4 * 4])
    except ValueError:
        return False
    return recognise_format(beginning) in _EXPECTED


def is_embedded(text: str) -> bool:
    """Whether a text holds an image instead of naming one."""
    return is_data_uri(text) or is_base64_image(text)


def embedded_content(text: str) -> bytes:
    """Return the image in a text for which `is_embedded` is true.

    Raises:
        ValueError: the text is neither base64 nor a data: URI.
    """
    if is_data_uri(text):
        head, _, payload = text.partition(",")
        if not head.lower().rstrip().endswith(";base64"):
            return unquote_to_bytes(payload)
        text = payload
    return decode_base64(text)


def decode_base64(text: str) -> bytes:
    """Decode base64. URL-safe characters, line breaks and missing padding are accepted.

    Raises:
        ValueError: the text is not base64.
    """
    bare = "".join(text.split()).rstrip("=").translate(_URL_SAFE)
    try:
        return base64.b64decode(bare + "=" * (-len(bare) % 4), validate=True)
    except binascii.Error as error:
        raise ValueError(f"not base64 ({error})") from None
