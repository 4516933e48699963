"""Text from outside in a form that UTF-8 can encode, and JSON with a limit on its depth.

Two kinds of input become code points that UTF-8 cannot encode: a byte that is not UTF-8, for example in the name of a
file, and one half of a surrogate pair, as in the JSON string `"\\ud83d"`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

Json: TypeAlias = "bool | int | float | str | Sequence[Json] | Mapping[str, Json] | None"
"""A value that JSON can store. Tuples become lists."""

_MAX_DEPTH = 100
"""In levels of nesting. Python has its own limit, but it depends on the depth of the call stack: a value that Python
could read in one place might be nested too deeply to be written in another."""
_TOO_DEEP = "nested too deeply"

_UNSTORABLE = re.compile(r"[\ud800-\udfff]")
_UNSTORABLE_OR_ESCAPE = re.compile(r"(\\*)(?:([\ud800-\udfff])|(?=x[89a-f][0-9a-f]|ud[89a-f][0-9a-f]{2}))")
"""Matches any number of backslashes before a code point that cannot be stored, or before the rest of an escape."""


def readable(text: str) -> str:
    r"""The text with an escape, such as `\xe9` or `\ud83d`, in place of each code point that cannot be stored."""
    return text if is_storable(text) else _UNSTORABLE.sub(lambda match: _escape(match[0]), text)


def identifier(text: str) -> str:
    r"""Like `readable`, but different texts have different results.

    If the text itself contains an escape such as `\xe9`, its backslashes are doubled.
    """
    if is_storable(text) and "\\" not in text:
        return text
    return _UNSTORABLE_OR_ESCAPE.sub(lambda match: 2 * match[1] + (_escape(match[2]) if match[2] else ""), text)


def is_storable(text: str) -> bool:
    """Whether UTF-8 can encode the text."""
    return text.isascii() or _UNSTORABLE.search(text) is None


def _escape(character: str) -> str:
    code = ord(character)
    # Python's `surrogateescape` represents the byte 0xE9 by U+DCE9.
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"


def parse_json(text: str | bytes) -> Any:
    """Decode a JSON document.

    Raises:
        ValueError: it is not JSON or not UTF-8, is nested over 100 levels deep, or has a number with too many digits.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    brackets = ("[", "{") if isinstance(text, str) else (b"[", b"{")
    if sum(map(text.count, brackets)) > _MAX_DEPTH and is_deep(value):  # type: ignore[arg-type]
        raise ValueError(_TOO_DEEP)
    return value


def to_json(value: Any) -> str:
    """Encode a value as JSON that can be stored.

    NaN and infinity become null. Values of types that JSON lacks become text.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, default=str, allow_nan=False)
    except ValueError:
        # JSON has no NaN. In the columns of a table, NaN stands for a missing value.
        text = json.dumps(_without_nan(value), ensure_ascii=False, default=str)
    # The backslash of an escape is itself escaped, so that decoding the JSON gives the same text as `readable`.
    return text if is_storable(text) else _UNSTORABLE.sub(lambda match: "\\" + _escape(match[0]), text)


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def is_deep(value: Any) -> bool:
    """Whether lists and mappings are nested over 100 levels deep, or contain themselves."""
    level = [value]
    for _ in range(_MAX_DEPTH):
        level = [
            child
            for item in level
            if isinstance(item, list | dict)
            for child in (item.values() if isinstance(item, dict) else item)
        ]
        if not level:
            return False
    return True
