"""An HTTP proxy in front of an object store that injects faults into a share of the requests.

It forwards every request unchanged, with its headers, `Host` and signature, and injects one fault into a share of them.
The fault depends on the seed, the request line and how many times that line was seen before: a repeated request gets a
new draw, and the order in which clients arrive does not matter.
"""

from __future__ import annotations

import random
import socket
import struct
import threading
import time
from collections import Counter
from dataclasses import dataclass
from email.message import Message
from enum import StrEnum
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

_UPSTREAM_TIMEOUT_S = 60.0
_NUM_PIECES = 4
_LONGEST_SLOW_BODY_S = 0.5
_POLL_S = 0.02
"""How often the server checks whether it should stop; the default of 0.5 s would delay the end of each test."""
_HOP_BY_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "expect", "content-length"})


class WebFault(StrEnum):
    """What may happen to a request."""

    INTERNAL_ERROR = "internal_error"
    """The answer is 500, and the request has no effect."""
    SLOW_DOWN = "slow_down"
    """The answer is 503, and the request has no effect."""
    RESET = "reset"
    """The connection is reset, and the request has no effect."""
    LOST_ANSWER = "lost_answer"
    """The request takes effect, and the connection is reset instead of an answer."""
    CUT_BODY = "cut_body"
    """The connection ends in the middle of the answer's body. An answer without a body is lost."""
    SLOW_BODY = "slow_body"
    """The answer arrives late and in pieces."""


_REFUSALS = {
    WebFault.INTERNAL_ERROR: (500, "InternalError", "We encountered an internal error. Please try again."),
    WebFault.SLOW_DOWN: (503, "SlowDown", "Please reduce your request rate."),
}


@dataclass(frozen=True)
class Answer:
    """A complete answer of the object store."""

    status: int
    reason: str
    headers: list[tuple[str, str]]
    body: bytes


class FaultyProxy:
    """A context manager: the proxy listens on a port of this machine while the context is open."""

    def __init__(self, upstream: str, share: float, seed: int) -> None:
        """Prepare the proxy.

        Args:
            upstream: The URL of the object store.
            share: The share of requests with a fault.
            seed: Decides which ones.
        """
        self.upstream = upstream
        self._num_requests = 0
        self._injected: Counter[str] = Counter()
        self._share = share
        self._seed = seed
        self._num_seen: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.proxy = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(_POLL_S,), daemon=True)

    @property
    def url(self) -> str:
        host, port = self._server.server_address[:2]
        return f"http://{host!s}:{port}"

    def draw(self, method: str, path: str) -> WebFault | None:
        """The fault for this request, or None."""
        line = f"{method} {path}"
        with self._lock:
            self._num_requests += 1
            self._num_seen[line] += 1
            draws = random.Random(f"{self._seed} {self._num_seen[line]} {line}")
        return draws.choice(list(WebFault)) if draws.random() < self._share else None

    def refuse(self, method: str, path: str) -> Answer | None:  # noqa: ARG002
        """An answer that takes the place of the store's; None lets the request through. For subclasses."""
        return None

    def forwards(self, header: str) -> bool:  # noqa: ARG002
        """Whether a header of a request, in lower case, reaches the store. For subclasses."""
        return True

    def count(self, fault: WebFault, method: str) -> None:
        """Count a fault that was injected."""
        with self._lock:
            self._injected[f"{fault} {method}"] += 1

    def counts(self) -> dict[str, Any]:
        """The number of requests, and of each injected fault by method, such as `lost_answer PUT`."""
        with self._lock:
            return {"requests": self._num_requests, "injected": dict(sorted(self._injected.items()))}

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # The readers of many engines connect at the same time.
    request_queue_size = 128
    proxy: FaultyProxy

    def shutdown_request(self, request: Any) -> None:
        # The base class would first shut the connection down in an orderly way, which must not precede a reset.
        self.close_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore errors: clients may be killed during a request, and others notice that the connection ends."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Head and body are two writes, and the second would wait for the client's acknowledgement.
    disable_nagle_algorithm = True
    server: _Server

    def _serve(self) -> None:
        body = self._request_body()
        if (answer := self.server.proxy.refuse(self.command, self.path)) is not None:
            self._send(answer)
            return
        fault = self.server.proxy.draw(self.command, self.path)
        if fault in _REFUSALS:
            self._send(refusal(*_REFUSALS[fault]))
        elif fault is WebFault.RESET:
            self._reset()
        else:
            fault = self._answer(self._forward(body), fault)
        if fault:
            self.server.proxy.count(fault, self.command)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve

    def _answer(self, answer: Answer, fault: WebFault | None) -> WebFault | None:
        """Send the answer with the fault; returns the fault that the client experiences."""
        if fault is WebFault.CUT_BODY and not answer.body:
            fault = WebFault.LOST_ANSWER
        if fault is WebFault.LOST_ANSWER:
            self._reset()
        elif fault is WebFault.CUT_BODY:
            self._send(answer, num_bytes=len(answer.body) // 2)
            self.close_connection = True
        elif fault is WebFault.SLOW_BODY:
            self._trickle(answer)
        else:
            self._send(answer)
        return fault

    def _request_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self._read_exactly(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            chunks.append(self._read_exactly(size))
            self.rfile.readline()
        # Trailers follow the last chunk, up to an empty line.
        while self.rfile.readline().strip():
            pass
        return b"".join(chunks)

    def _read_exactly(self, num_bytes: int) -> bytes:
        """Read a part of the request.

        Raises:
            ConnectionError: the client ended before. A request that was cut must have no effect, as at a real store.
        """
        content = self.rfile.read(num_bytes)
        if len(content) < num_bytes:
            raise ConnectionError(f"{self.command} {self.path}: {len(content)} of {num_bytes} bytes arrived")
        return content

    def _forward(self, body: bytes) -> Answer:
        upstream = urlsplit(self.server.proxy.upstream)
        connection = HTTPConnection(upstream.hostname or "", upstream.port, timeout=_UPSTREAM_TIMEOUT_S)
        try:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in _end_to_end(self.headers):
                if self.server.proxy.forwards(name.lower()):
                    connection.putheader(name, value)
            connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            response = connection.getresponse()
            headers = _end_to_end(response.headers)
            content = response.read()
            # The answer to HEAD has the length of a body that is not sent.
            headers.append(("Content-Length", response.headers.get("Content-Length") or str(len(content))))
            return Answer(response.status, response.reason, headers, content)
        finally:
            connection.close()

    def _send(self, answer: Answer, num_bytes: int | None = None) -> None:
        """Send the answer's head and the first bytes of its body; all of them if `num_bytes` is None."""
        self.send_response_only(answer.status, answer.reason)
        for name, value in answer.headers:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(b"" if self.command == "HEAD" else answer.body[:num_bytes])

    def _trickle(self, answer: Answer) -> None:
        pause_s = random.uniform(0.1, _LONGEST_SLOW_BODY_S) / _NUM_PIECES
        time.sleep(pause_s)
        self._send(answer, num_bytes=0)
        size = len(answer.body) // _NUM_PIECES + 1
        for start in range(0, len(answer.body), size):
            time.sleep(pause_s)
            self.wfile.write(answer.body[start : start + size])

    def _reset(self) -> None:
        # A socket that is closed with a linger time of zero sends RST.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing; the proxy counts requests and faults."""


def _end_to_end(headers: Message) -> list[tuple[str, str]]:
    return [(name, value) for name, value in headers.items() if name.lower() not in _HOP_BY_HOP]


def refusal(status: int, code: str, message: str) -> Answer:
    """An error in the form of the S3 API."""
    body = (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>{message}</Message>'
        f"<RequestId>injected</RequestId></Error>"
    ).encode()
    return Answer(status, code, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))], body)
