"""Files at http://, from servers of many kinds: with and without ranges, lengths, encodings, redirects and manners."""

from __future__ import annotations

import gzip
import re
import resource
import socket
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar
from urllib.parse import unquote

import pytest
from urllib3.connection import HTTPConnection

from mpa_ray.config import ObjectStoreConfig, SourceConfig
from mpa_ray.corpus.index import Selection
from mpa_ray.corpus.places.places import Places
from mpa_ray.corpus.places.web import Web
from mpa_ray.corpus.places.web_connections import is_public
from mpa_ray.corpus.read import Reader
from mpa_ray.errors import ConfigError
from mpa_ray.imaging.decode import ImageProblem
from mpa_ray.records import Reason
from mpa_ray.storage import deadline

CONTENT = bytes(range(256)) * 20
SETTINGS = ObjectStoreConfig(max_attempts=3, first_pause_s=0.01)
IMPATIENT = ObjectStoreConfig(max_attempts=3, first_pause_s=0.01, read_deadline_s=0.3)
ENDLESS_BYTES = 200 * 2**20


class Site(BaseHTTPRequestHandler):
    """A server whose behaviour a path names; see `PATHS`. Other paths do not exist."""

    protocol_version = "HTTP/1.1"
    num_requests: ClassVar[Counter[str]] = Counter()
    num_connections = 0

    def setup(self) -> None:
        Site.num_connections += 1
        super().setup()

    def do_GET(self) -> None:
        Site.num_requests[self.path] += 1
        try:
            PATHS.get(self.path.partition("?")[0], Site.missing)(self)
        except OSError:
            # The client has closed the connection.
            self.close_connection = True

    def do_HEAD(self) -> None:
        self.do_GET()

    def missing(self) -> None:
        self.answer(404, b"not here")

    def answer(self, status: int, content: bytes = b"", **headers: str) -> None:
        self.begin(status, **{"Content_Length": str(len(content)), **headers})
        if self.command == "GET":
            self.wfile.write(content)

    def begin(self, status: int, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def begin_without_length(self, **headers: str) -> None:
        self.close_connection = True
        self.begin(200, **headers)

    def ranges(self, shift: int = 0) -> None:
        byte_range = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not byte_range:
            self.answer(200, CONTENT)
            return
        first, last = int(byte_range[1]) + shift, int(byte_range[2] or len(CONTENT) - 1)
        if first >= len(CONTENT):
            self.answer(416, Content_Range=f"bytes */{len(CONTENT)}")
            return
        part = CONTENT[first : last + 1]
        self.answer(206, part, Content_Range=f"bytes {first}-{first + len(part) - 1}/{len(CONTENT)}")

    def once(self) -> None:
        self.answer(503) if Site.num_requests["/once"] == 1 else self.answer(200, CONTENT)

    def wait_for_long(self) -> None:
        self.answer(503, Retry_After="100000")

    def endless(self, chunk: bytes = b"x" * 2**20) -> None:
        self.begin_without_length()
        for _ in range(ENDLESS_BYTES // len(chunk)):
            self.wfile.write(chunk)

    def endless_with_length(self) -> None:
        self.begin(200, Content_Length=str(ENDLESS_BYTES))
        for _ in range(ENDLESS_BYTES >> 20):
            self.wfile.write(b"x" * 2**20)

    def endless_chunks(self) -> None:
        self.begin(200, Transfer_Encoding="chunked")
        for _ in range(ENDLESS_BYTES >> 20):
            self.wfile.write(b"100000\r\n" + b"x" * 2**20 + b"\r\n")

    def bomb(self) -> None:
        encoder = zlib.compressobj(9, wbits=31)
        self.begin_without_length(Content_Encoding="gzip")
        for _ in range(ENDLESS_BYTES >> 20):
            self.wfile.write(encoder.compress(bytes(2**20)))
        self.wfile.write(encoder.flush())

    def without_length(self) -> None:
        self.begin_without_length()
        if self.command == "GET":
            self.wfile.write(CONTENT)

    def encoded(self, name: str = "gzip", encode: Callable[[bytes], bytes] = gzip.compress) -> None:
        self.answer(200, encode(CONTENT), Content_Encoding=name)

    def breaks_once(self) -> None:
        if Site.num_requests["/breaks-once"] > 1:
            self.answer(200, CONTENT)
            return
        self.begin(200, Content_Length=str(len(CONTENT)))
        self.wfile.write(CONTENT[:100])
        self.close_connection = True

    def drip_body(self) -> None:
        self.begin(200, Content_Length=str(len(CONTENT)))
        self.drip()

    def drip_chunks(self) -> None:
        self.begin(200, Transfer_Encoding="chunked")
        self.drip(b"1\r\nx\r\n")

    def drip_headers(self) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        self.drip()

    def drip(self, piece: bytes = b"x") -> None:
        for _ in range(600):
            self.wfile.write(piece)
            time.sleep(0.05)

    def continue_forever(self) -> None:
        for _ in range(3000):
            self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            time.sleep(0.01)

    def silent(self) -> None:
        time.sleep(30)

    def redirect(self) -> None:
        self.answer(302, Location=unquote(self.path.partition("?")[2]))

    def log_message(self, *_: object) -> None:
        """Log nothing."""


PATHS: dict[str, Callable[[Site], None]] = {
    "/whole": lambda site: site.answer(200, CONTENT),
    "/ranges": Site.ranges,
    "/other-range": lambda site: site.ranges(shift=1),
    "/once": Site.once,
    "/wait-for-long": Site.wait_for_long,
    "/refused": lambda site: site.answer(403),
    "/empty": lambda site: site.answer(416, Content_Range="bytes */0") if site.command == "GET" else site.answer(200),
    "/no-head": lambda site: site.ranges() if site.command == "GET" else site.answer(405),
    "/endless": Site.endless,
    "/endless-with-length": Site.endless_with_length,
    "/endless-chunks": Site.endless_chunks,
    "/bomb": Site.bomb,
    "/without-length": Site.without_length,
    "/gzip": Site.encoded,
    "/deflate": lambda site: site.encoded("deflate", zlib.compress),
    "/gzip-in-parts": lambda site: site.encoded("x-gzip", lambda c: gzip.compress(c[:99]) + gzip.compress(c[99:])),
    "/continue-forever": Site.continue_forever,
    "/cut-gzip": lambda site: site.encoded("gzip", lambda content: gzip.compress(content)[:-20]),
    "/not-gzip": lambda site: site.encoded("gzip", bytes),
    "/br": lambda site: site.encoded("br", bytes),
    "/breaks-once": Site.breaks_once,
    "/drip-body": Site.drip_body,
    "/drip-chunks": Site.drip_chunks,
    "/drip-headers": Site.drip_headers,
    "/silent": Site.silent,
    "/redirect": Site.redirect,
    "/circle": lambda site: site.answer(301, Location="/circle"),
    "/list.txt": lambda site: site.answer(200, b"ranges\nnone\n"),
    "/gzip.txt": lambda site: site.encoded("gzip", lambda _: gzip.compress(b"ranges\nwhole\n")),
}


@pytest.fixture(scope="module")
def server() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Site)
    server.daemon_threads = True
    server.block_on_close = False
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def site(server: ThreadingHTTPServer) -> str:
    Site.num_requests.clear()
    return f"http://127.0.0.1:{server.server_port}"


def problem_of(uri: str, settings: ObjectStoreConfig = SETTINGS, max_bytes: int | None = None) -> ImageProblem:
    (content,) = Reader(settings, max_bytes=max_bytes).read([uri])
    assert isinstance(content, ImageProblem)
    return content


@pytest.mark.parametrize(
    "path", ["whole", "ranges", "without-length", "gzip", "gzip-in-parts", "deflate", "no-head", "breaks-once"]
)
def test_files_and_parts_of_them_are_read(site: str, path: str) -> None:
    uri = f"{site}/{path}"
    place = Places(SETTINGS).of(uri)
    assert place.read(uri) == CONTENT
    assert place.size(uri) == len(CONTENT)
    assert place.read(uri, 100, 50) == CONTENT[100:150]
    assert place.read(uri, 0, 10**6) == CONTENT
    assert place.read(uri, len(CONTENT) + 10, 5) == b""
    assert place.read(uri, 5, 0) == b""
    with Places(SETTINGS).open(uri) as file:
        file.seek(-10, 2)
        assert file.read() == CONTENT[-10:]


def test_a_missing_file_is_a_reason(site: str) -> None:
    contents = Reader(SETTINGS, max_bytes=6000).read([f"{site}/once", f"{site}/none"])
    assert contents[0] == CONTENT
    assert isinstance(contents[1], ImageProblem)
    assert contents[1].reason == Reason.UNREADABLE
    assert contents[1].detail == f"FileNotFoundError: {site}/none: HTTP status 404"


def test_errors_that_may_pass_are_connection_errors(site: str) -> None:
    """`ConnectionError` and `TimeoutError` may pass."""
    for uri in ("http://127.0.0.1:9/refused", f"{site}/wait-for-long"):
        with pytest.raises(ConnectionError, match="attempt 3"):
            Places(SETTINGS).of(uri).read(uri)
    with pytest.raises(OSError, match="HTTP status 403") as caught:
        Places(SETTINGS).of(site).read(f"{site}/refused")
    assert type(caught.value) is OSError


def test_what_cannot_pass_is_requested_once(site: str) -> None:
    for path in ("refused", "none", "other-range", "br"):
        problem_of(f"{site}/{path}", max_bytes=100)
        assert Site.num_requests[f"/{path}"] == 1


def test_a_file_that_is_too_large_is_a_reason(site: str) -> None:
    assert problem_of(f"{site}/ranges", max_bytes=1000).reason == Reason.TOO_MANY_BYTES


def test_an_empty_file_has_no_bytes(site: str) -> None:
    assert Reader(SETTINGS, max_bytes=1000).read([f"{site}/empty"]) == [b""]


def test_connections_are_reused(site: str) -> None:
    reader, uri = Reader(SETTINGS, num_threads=1), f"{site}/ranges"
    place = reader.places.of(uri)
    place.read(uri)
    before = Site.num_connections
    for _ in range(5):
        place.read(uri)
        place.read(uri, 10, 20)
        place.size(uri)
    assert Site.num_connections == before


@pytest.mark.parametrize("path", ["endless", "endless-with-length", "endless-chunks", "bomb"])
def test_memory_is_bounded_whatever_the_server_sends(site: str, path: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert problem_of(f"{site}/{path}", max_bytes=1000).reason == Reason.TOO_MANY_BYTES
    place = Places(SETTINGS).of(site)
    assert len(place.read(f"{site}/{path}", 50 * 2**20, 1000)) == 1000
    num_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert num_kib < 32 * 2**10


@pytest.mark.parametrize(
    ("path", "detail"),
    [
        ("cut-gzip", "ends too early"),
        ("not-gzip", "does not match its Content-Encoding"),
        ("br", "Content-Encoding br, which was not requested"),
        ("other-range", "a range other than the requested one"),
    ],
)
def test_a_wrong_answer_is_a_reason(site: str, path: str, detail: str) -> None:
    assert detail in problem_of(f"{site}/{path}", max_bytes=10**6).detail


@pytest.mark.parametrize(
    "path", ["drip-body", "drip-chunks", "drip-headers", "continue-forever", "silent", "wait-for-long"]
)
def test_a_slow_server_is_cut_off(site: str, path: str) -> None:
    problem = problem_of(f"{site}/{path}", IMPATIENT)
    assert "TimeoutError" in problem.detail or "HTTP status 503 (attempt 3)" in problem.detail


@pytest.mark.parametrize("path", ["drip-body", "drip-chunks", "drip-headers", "continue-forever", "silent"])
def test_the_thread_of_a_slow_server_ends(site: str, path: str) -> None:
    before = num_busy()
    for _ in range(3):
        assert "TimeoutError" in problem_of(f"{site}/{path}", IMPATIENT).detail
    wait_until(lambda: num_busy() <= before)
    assert num_busy() <= before


def num_busy() -> int:
    """How many threads wait for a read."""
    return sum(thread.name == deadline.THREAD_NAME for thread in threading.enumerate()) - len(deadline._idle)


def wait_until(is_true: Callable[[], bool]) -> None:
    for _ in range(100):
        if is_true():
            return
        time.sleep(0.05)


def test_a_redirect_on_the_same_host_is_followed(site: str) -> None:
    assert Reader(SETTINGS).read([f"{site}/redirect?/ranges"]) == [CONTENT]
    assert Places(SETTINGS).of(site).size(f"{site}/redirect?ranges") == len(CONTENT)


def test_a_redirect_to_another_host_needs_a_permission(site: str) -> None:
    other = site.replace("127.0.0.1", "localhost")
    problem = problem_of(f"{other}/redirect?{site}/ranges")
    assert "redirects to another host, 127.0.0.1; if you trust it, add 'redirects' to source.allow" in problem.detail
    assert Reader(SETTINGS, follow_redirects=True).read([f"{other}/redirect?{site}/ranges"]) == [CONTENT]


def test_another_port_is_another_host(site: str) -> None:
    assert "another host" in problem_of(f"{site}/redirect?http://127.0.0.1:9/").detail


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/a", "gopher://127.0.0.1:70/", "s3://b/k"])
@pytest.mark.parametrize("follow", [False, True])
def test_a_redirect_away_from_the_web_is_never_followed(site: str, target: str, follow: bool) -> None:
    (content,) = Reader(SETTINGS, follow_redirects=follow).read([f"{site}/redirect?{target}"])
    assert isinstance(content, ImageProblem)
    assert "which is not allowed" in content.detail
    assert Site.num_requests.total() == 1


@pytest.mark.parametrize(
    "target",
    [
        "http://localhost:{port}\\@127.0.0.1:{port}/ranges?away",
        "http://127.0.0.1:{port}@localhost:{port}/ranges?away",
        "//localhost:{port}/ranges?away",
        "///localhost:{port}/ranges?away",
        "http:localhost:{port}/ranges?away",
        "\\\\localhost:{port}/ranges?away",
        "http://LOCALHOST:{port}/ranges?away",
    ],
)
def test_a_redirect_cannot_hide_its_host(site: str, server: ThreadingHTTPServer, target: str) -> None:
    # Only the other name of the server reaches the path with `away`.
    assert problem_of(f"{site}/redirect?{target.format(port=server.server_port)}")
    assert Site.num_requests["/ranges?away"] == 0


def test_redirects_in_a_circle_end(site: str) -> None:
    assert "redirects more than 5 times" in problem_of(f"{site}/circle").detail


@pytest.mark.parametrize("host", ["localhost", "[::1]", "2130706433"])
def test_a_public_host_cannot_redirect_to_a_private_address(site: str, server: ThreadingHTTPServer, host: str) -> None:
    resolved: list[str] = []

    def first_is_public(address: str) -> bool:
        resolved.append(address)
        return len(resolved) == 1

    web = Web(SETTINGS, follow_redirects=True, is_public=first_is_public)
    target = f"http://{host}:{server.server_port}/ranges?target"
    with pytest.raises(OSError, match=re.escape(host)) as raised:
        web.read(f"{site}/redirect?{target}")
    assert Site.num_requests["/ranges?target"] == 0
    if host != "[::1]":
        assert "redirects to 127.0.0.1, which is not a public address" in str(raised.value)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("169.254.169.254", False),
        ("fd00:ec2::254", False),
        ("10.1.2.3", False),
        ("192.168.0.1", False),
        ("100.64.0.1", False),
        ("127.0.0.1", False),
        ("0.0.0.0", False),
        ("::1", False),
        ("::ffff:169.254.169.254", False),
        ("::ffff:8.8.8.8", True),
        ("fe80::1%eth0", False),
        ("224.0.0.1", False),
    ],
)
def test_public_and_private_addresses_are_distinguished(address: str, expected: bool) -> None:
    assert is_public(address) is expected


def test_a_host_that_does_not_exist_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []

    def unknown(*arguments: object, **_: object) -> None:
        calls.append(arguments)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    assert "no.such.host" in problem_of("http://no.such.host/a.png").detail
    assert len(calls) == 1


@pytest.mark.parametrize("uri", ["http://", "http:///a.png", "http://[::1/a.png", "http://host:port/a.png"])
def test_a_malformed_uri_is_a_reason(uri: str) -> None:
    assert problem_of(uri).reason == Reason.UNREADABLE


def test_lists_on_the_web_are_read(site: str) -> None:
    for name, num_images in (("list.txt", 2), ("gzip.txt", 2)):
        config = SourceConfig(path=f"{site}/{name}", allow=("http",))
        refs = list(Selection(config, Places(SETTINGS)).images())
        assert len(refs) == num_images
        assert refs[0].uri == f"{site}/ranges"
    with pytest.raises(ConfigError, match="HTTP status 404"):
        list(Selection(SourceConfig(path=f"{site}/none.txt", allow=("http",)), Places(SETTINGS)).images())


def test_a_source_may_redirect_only_where_allowed(site: str) -> None:
    path = f"{site.replace('127.0.0.1', 'localhost')}/redirect?{site}/list.txt"
    with pytest.raises(ConfigError, match="redirects to another host"):
        list(Selection(SourceConfig(path=path, kind="list", allow=("http",)), Places(SETTINGS)).images())
    allowed = SourceConfig(path=path, kind="list", allow=("http", "redirects"))
    assert len(list(Selection(allowed, Places(SETTINGS)).images())) == 2


def test_the_connections_are_those_of_urllib3() -> None:
    # `web_connections.py` extends methods that urllib3 calls.
    assert {"connect", "request"} <= vars(HTTPConnection).keys()
