"""Object stores that ignore ranges, state no length, or send slowly."""

from __future__ import annotations

import resource
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from mpa_ray.config import ObjectStoreConfig
from mpa_ray.corpus.places.places import Places
from mpa_ray.corpus.read import Reader
from mpa_ray.errors import ConfigError
from mpa_ray.imaging.decode import ImageProblem
from mpa_ray.records import Reason
from mpa_ray.storage import deadline
from mpa_ray.storage.object_store import ObjectStore
from mpa_ray.storage.s3 import S3Storage

CONTENT = bytes(range(256)) * 20


class Store(BaseHTTPRequestHandler):
    """Answers every request with the whole object, as its key says."""

    num_requests = 0

    def do_GET(self) -> None:
        Store.num_requests += 1
        try:
            self.send_response(200)
            if "endless" in self.path:
                self.end_headers()
                for _ in range(400):
                    self.wfile.write(bytes(2**20))
            elif "drip-headers" in self.path:
                self.drip(b"x")
            elif "drip" in self.path:
                self.send_header("Content-Length", str(len(CONTENT)))
                self.end_headers()
                self.drip(b"x")
            else:
                self.send_header("Content-Length", str(len(CONTENT)))
                self.end_headers()
                self.wfile.write(CONTENT)
        except OSError:
            # The client has closed the connection.
            return

    def drip(self, piece: bytes) -> None:
        self.wfile.flush()
        for _ in range(600):
            self.wfile.write(piece)
            time.sleep(0.05)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStoreConfig]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Store)
    server.daemon_threads = True
    server.block_on_close = False
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield ObjectStoreConfig(
        endpoint_url=f"http://127.0.0.1:{server.server_port}",
        region="us-east-1",
        first_pause_s=0.01,
    )
    server.shutdown()
    server.server_close()


@pytest.fixture
def impatient(config: ObjectStoreConfig) -> ObjectStoreConfig:
    return config.model_copy(update={"read_deadline_s": 0.3})


def test_a_store_without_ranges_gives_the_right_part(config: ObjectStoreConfig) -> None:
    store = ObjectStore(config)
    assert store.get("bucket", "whole") == CONTENT
    assert store.get("bucket", "whole", 100, 50) == CONTENT[100:150]
    assert store.get("bucket", "whole", 100) == CONTENT[100:]
    assert store.get("bucket", "whole", 10**6, 5) == b""


def test_memory_is_bounded_whatever_the_store_sends(config: ObjectStoreConfig) -> None:
    # The client is made, and its modules imported.
    Places(config).of("s3://bucket/whole").read("s3://bucket/whole", 0, 10)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (content,) = Reader(config, max_bytes=1000).read(["s3://bucket/endless"])
    assert isinstance(content, ImageProblem)
    assert content.reason == Reason.TOO_MANY_BYTES
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 * 2**10


@pytest.mark.parametrize("key", ["drip", "drip-headers"])
def test_a_slow_store_is_given_up(impatient: ObjectStoreConfig, key: str) -> None:
    """Without a deadline, this reading never ends."""
    (content,) = Reader(impatient).read([f"s3://bucket/{key}"])
    assert isinstance(content, ImageProblem)
    assert f"TimeoutError: s3://bucket/{key}:" in content.detail
    with pytest.raises(TimeoutError, match=f"s3://bucket/{key}: "):
        S3Storage("s3://bucket", impatient).read(key)


def test_a_slow_listing_is_given_up(impatient: ObjectStoreConfig) -> None:
    with pytest.raises(TimeoutError, match="s3://drip-bucket/"):
        list(S3Storage("s3://drip-bucket", impatient).list("corpus"))
    with pytest.raises(ConfigError, match="cannot be listed"):
        list(Places(impatient).of("s3://drip-bucket").walk("s3://drip-bucket/images"))


def test_the_thread_of_a_slow_store_ends(impatient: ObjectStoreConfig) -> None:
    before = num_busy()
    for number in range(3):
        (content,) = Reader(impatient, num_threads=1).read([f"s3://bucket/drip-{number}"])
        assert isinstance(content, ImageProblem)
    for _ in range(100):
        if num_busy() <= before:
            break
        time.sleep(0.05)
    assert num_busy() <= before
    num_requests = Store.num_requests
    time.sleep(0.3)
    assert Store.num_requests == num_requests, "an expired read is not repeated"


def num_busy() -> int:
    """How many threads wait for a read."""
    return sum(thread.name == deadline.THREAD_NAME for thread in threading.enumerate()) - len(deadline._idle)
