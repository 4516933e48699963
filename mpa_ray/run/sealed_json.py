"""JSON objects that hold a digest of their own content, so that a changed bit is noticed when they are read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from mpa_ray.textual import parse_json

DIGEST = "_digest"
"""The key of the digest, which is the last one of the object."""


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """The object with its digest."""
    values = {key: value for key, value in content.items() if key != DIGEST}
    return {**values, DIGEST: _digest(values)}


def parse_sealed(content: bytes) -> dict[str, Any]:
    """Read an object, and return it without its digest. Objects that older versions wrote have none.

    Raises:
        ValueError: it is damaged.
    """
    values = parse_json(content)
    if not isinstance(values, dict):
        raise ValueError("it is not a JSON object")
    if not values:
        return {}
    key, digest = values.popitem()
    is_sealed = digest == _digest(values)
    if is_sealed != (key == DIGEST) or DIGEST in values:
        # If the key of the digest is damaged, the object must not be accepted as one without a digest.
        raise ValueError("its content does not have its digest")
    return values if is_sealed else {**values, key: digest}


def _digest(values: Mapping[str, Any]) -> str:
    # Spaces, escapes and line breaks of the file do not matter, as they change no value.
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()
