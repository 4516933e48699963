"""Reads the body of a web server's response up to a limit, even if the server sends more."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

from urllib3 import BaseHTTPResponse

from mpa_ray.storage.deadline import Expiry

_CHUNK_BYTES = 64 * 2**10
_GZIP = ("gzip", "x-gzip", "deflate")
_ANY_HEADER = 47
"""Makes zlib recognise the headers of both gzip and deflate."""


def read_body(response: BaseHTTPResponse, skip: int, num_bytes: int) -> bytes:
    """Return at most `num_bytes` of a body after its first `skip` bytes, and read no further.

    Raises:
        OSError: the body is encoded in a way that was not requested, or ends too early.
        TimeoutError: the deadline of the call has passed.
        urllib3.exceptions.HTTPError: the connection broke.
    """
    content = bytearray()
    try:
        for chunk in _decoded(response):
            content += chunk[skip:] if skip else chunk
            skip = max(0, skip - len(chunk))
            if len(content) >= num_bytes:
                break
    finally:
        # If the response was not read to its end, this closes the connection. Otherwise, the connection is already back
        # in the pool.
        response.close()
    del content[num_bytes:]
    return bytes(content)


def encoding_of(response: BaseHTTPResponse) -> str:
    """Return the body's `Content-Encoding`; empty if the body is not encoded."""
    encoding = response.headers.get("Content-Encoding", "").strip().lower()
    return "" if encoding == "identity" else encoding


def _decoded(response: BaseHTTPResponse) -> Iterator[bytes]:
    encoding = encoding_of(response)
    if not encoding:
        yield from _raw(response)
        return
    if encoding not in _GZIP:
        raise OSError(f"sent with Content-Encoding {encoding}, which was not requested")
    decoder = None
    for chunk in _raw(response):
        # Yield at most one chunk of decoded bytes at a time, because a few encoded bytes may decode to thousands of
        # times as many.
        while chunk:
            if decoder is None or decoder.eof:
                # A body may have several encoded parts.
                decoder = zlib.decompressobj(_ANY_HEADER)
            yield _inflate(decoder, chunk, _CHUNK_BYTES)
            chunk = decoder.unused_data if decoder.eof else decoder.unconsumed_tail
    if decoder is not None and not decoder.eof:
        raise OSError(f"the {encoding} encoding ends too early")


def _inflate(decoder: zlib._Decompress, chunk: bytes, max_bytes: int) -> bytes:
    try:
        return decoder.decompress(chunk, max_bytes)
    except zlib.error as error:
        raise OSError(f"its content does not match its Content-Encoding ({error})") from error


def _raw(response: BaseHTTPResponse) -> Iterator[bytes]:
    expiry, num_bytes = Expiry.current(), 0
    while chunk := response.read1(_CHUNK_BYTES, decode_content=False):
        num_bytes += len(chunk)
        yield chunk
        expiry.check("its body", num_bytes)
