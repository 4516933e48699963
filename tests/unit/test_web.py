"""Files at http://, from servers with and without support for ranges."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from mpa_ray.config import ObjectStoreConfig
from mpa_ray.corpus.places.places import Places
from mpa_ray.corpus.read import Reader
from mpa_ray.imaging.decode import ImageProblem
from mpa_ray.records import Reason

CONTENT = bytes(range(256)) * 20
SETTINGS = ObjectStoreConfig(max_attempts=3, first_pause_s=0.01)


class Site(BaseHTTPRequestHandler):
    """`/whole` ignores ranges, `/ranges` supports them, `/once` fails the first time; other paths do not exist."""

    num_requests = 0

    def do_GET(self) -> None:
        Site.num_requests += 1
        byte_range = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if self.path == "/once" and Site.num_requests == 1:
            self.answer(503, b"")
        elif self.path == "/ranges" and byte_range:
            first, last = int(byte_range[1]), int(byte_range[2] or len(CONTENT) - 1)
            self.answer(206, CONTENT[first : last + 1], f"bytes {first}-{last}/{len(CONTENT)}")
        elif self.path in ("/whole", "/ranges", "/once"):
            self.answer(200, CONTENT)
        else:
            self.answer(404, b"not here")

    def do_HEAD(self) -> None:
        self.do_GET()

    def answer(self, status: int, content: bytes, content_range: str | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        if content_range:
            self.send_header("Content-Range", content_range)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@pytest.fixture
def site() -> Iterator[str]:
    Site.num_requests = 0
    server = ThreadingHTTPServer(("127.0.0.1", 0), Site)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("path", ["whole", "ranges"])
def test_files_and_parts_of_them(site: str, path: str) -> None:
    uri = f"{site}/{path}"
    place = Places(SETTINGS).of(uri)
    assert place.size(uri) == len(CONTENT)
    assert place.read(uri) == CONTENT
    assert place.read(uri, 100, 50) == CONTENT[100:150]
    with Places(SETTINGS).open(uri) as file:
        file.seek(-10, 2)
        assert file.read() == CONTENT[-10:]


def test_a_missing_file_is_a_reason(site: str) -> None:
    contents = Reader(SETTINGS, max_bytes=6000).read([f"{site}/once", f"{site}/none", "http://127.0.0.1:9/refused"])
    assert contents[0] == CONTENT
    assert [c.reason for c in contents[1:] if isinstance(c, ImageProblem)] == [Reason.UNREADABLE] * 2


def test_a_file_that_is_too_large_is_a_reason(site: str) -> None:
    (content,) = Reader(SETTINGS, max_bytes=1000).read([f"{site}/ranges"])
    assert isinstance(content, ImageProblem)
    assert content.reason == Reason.TOO_MANY_BYTES
