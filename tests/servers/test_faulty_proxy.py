"""What the proxy that injects faults forwards to the object store."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import pytest

from benchmarks.faulty_proxy import FaultyProxy


class _Store(ThreadingHTTPServer):
    """Records the bodies that it is sent."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.bodies: list[bytes] = []


class _Handler(BaseHTTPRequestHandler):
    server: _Store

    def do_PUT(self) -> None:
        self.server.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""


@contextmanager
def _store() -> Iterator[_Store]:
    with _Store() as store:
        thread = threading.Thread(target=store.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield store
        finally:
            store.shutdown()
            thread.join()


WHOLE = {
    "a length": b"Content-Length: 6\r\n\r\nabcdef",
    "chunks": b"Transfer-Encoding: chunked\r\n\r\n6\r\nabcdef\r\n0\r\n\r\n",
}
CUT = {
    "no byte": b"Content-Length: 6\r\n\r\n",
    "half the bytes": b"Content-Length: 6\r\n\r\nabc",
    "half a chunk": b"Transfer-Encoding: chunked\r\n\r\n6\r\nabc",
    "no last chunk": b"Transfer-Encoding: chunked\r\n\r\n6\r\nabcdef\r\n",
}


def _send(proxy: FaultyProxy, request: bytes) -> bytes:
    """Send a request, then nothing more; returns what the proxy answers until it closes the connection."""
    address = urlsplit(proxy.url)
    with socket.create_connection((address.hostname, address.port)) as connection:
        connection.sendall(b"PUT /bucket/key HTTP/1.1\r\nHost: store\r\n" + request)
        connection.shutdown(socket.SHUT_WR)
        with connection.makefile("rb") as answer:
            return answer.read()


@pytest.mark.parametrize("request_", WHOLE.values(), ids=WHOLE)
def test_a_whole_request_reaches_the_store(request_: bytes) -> None:
    with _store() as store, FaultyProxy(f"http://127.0.0.1:{store.server_address[1]}", share=0, seed=0) as proxy:
        assert _send(proxy, request_).startswith(b"HTTP/1.1 200")
        assert store.bodies == [b"abcdef"]


@pytest.mark.parametrize("request_", CUT.values(), ids=CUT)
def test_a_request_that_its_client_cut_has_no_effect(request_: bytes) -> None:
    with _store() as store, FaultyProxy(f"http://127.0.0.1:{store.server_address[1]}", share=0, seed=0) as proxy:
        assert _send(proxy, request_) == b""
        assert store.bodies == []
