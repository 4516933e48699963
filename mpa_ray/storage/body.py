"""Read the body of a response, until the deadline of the call."""

from __future__ import annotations

from functools import partial
from typing import Any

from mpa_ray.storage.deadline import Expiry

_CHUNK_BYTES = 2**20
_CUT_OFF_S = 0.001


def read_body(body: Any, skip: int, num_bytes: int | None, name: str) -> bytes:
    """Read at most `num_bytes` of a body after its first `skip` bytes. Raise TimeoutError at the call's deadline;
    `name` is for the message."""
    expiry = Expiry.current()
    # The new timeout does not affect a read that is already waiting. That read returns its next bytes, and the read
    # after it times out.
    expiry.on_expiry(partial(body.set_socket_timeout, _CUT_OFF_S))
    content = bytearray()
    while num_bytes is None or len(content) < num_bytes:
        chunk = body.read(_CHUNK_BYTES)
        if not chunk:
            return bytes(content)
        content += chunk[skip:] if skip else chunk
        skip = max(0, skip - len(chunk))
        expiry.check(name, len(content))
    body.close()
    del content[num_bytes:]
    return bytes(content)
