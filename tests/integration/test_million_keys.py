"""Indexing a bucket of a million keys needs little memory, and continues after a kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import psutil
import pytest
import yaml

from mpa_ray.run.markers import shard_name
from mpa_ray.run.run import Run
from tests.conftest import scripted_tree

ROOT = Path(__file__).parents[2]
NUM_FOLDERS, PER_FOLDER = 20, 50_000
NUM_KEYS = NUM_FOLDERS * PER_FOLDER
PAGE = 1000
MAX_BYTES = 10**9


@dataclass(frozen=True)
class ImageSize:
    """Two columns of the corpus."""

    image_id: str
    num_bytes: int | None


def key(number: int) -> str:
    return f"corpus/{number // PER_FOLDER:02d}/{number % PER_FOLDER:06d}.jpg"


class Lister(BaseHTTPRequestHandler):
    """The S3 operation ListObjectsV2 for keys that are generated when they are listed."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        query = {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}
        prefix, delimited = query.get("prefix", ""), "delimiter" in query
        folder = prefix.removeprefix("corpus/").rstrip("/")
        if delimited and not folder:
            prefixes = "".join(
                f"<CommonPrefixes><Prefix>corpus/{n:02d}/</Prefix></CommonPrefixes>" for n in range(NUM_FOLDERS)
            )
            self.answer(prefixes, "false")
            return
        first = int(folder) * PER_FOLDER if folder else 0
        end = first + PER_FOLDER if folder else NUM_KEYS
        start = max(first, self.number_after(query.get("continuation-token") or query.get("start-after", "")))
        numbers = range(start, min(start + PAGE, end))
        contents = "".join(
            f"<Contents><Key>{key(n)}</Key><Size>{1000 + n % 7}</Size><ETag>&quot;{n:032x}&quot;</ETag>"
            "<LastModified>2026-01-01T00:00:00.000Z</LastModified><StorageClass>STANDARD</StorageClass></Contents>"
            for n in numbers
        )
        more = bool(numbers) and numbers[-1] + 1 < end
        token = f"<NextContinuationToken>{key(numbers[-1])}</NextContinuationToken>" if more else ""
        self.answer(contents + token, "true" if more else "false")

    def do_HEAD(self) -> None:
        """Only objects that identify the kind of source are requested by name, and none of them exists."""
        self.send_response(404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    @staticmethod
    def number_after(name: str) -> int:
        parts = name.removeprefix("corpus/").removesuffix(".jpg").split("/")
        return int(parts[0]) * PER_FOLDER + int(parts[1]) + 1 if len(parts) == 2 and parts[1] else 0

    def answer(self, inside: str, is_truncated: str) -> None:
        content = f"<ListBucketResult><IsTruncated>{is_truncated}</IsTruncated>{inside}</ListBucketResult>".encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@pytest.fixture
def lister() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Lister)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def index(config: Path, endpoint: str, stop_at: Path | None = None) -> tuple[int, int]:
    """Run the job, or kill it when a file exists; return its exit code and its peak memory in bytes."""
    environment = {
        **os.environ,
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    peak = 0
    with subprocess.Popen(
        [sys.executable, "jobs/index.py", "--config", str(config)], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL
    ) as driver:
        process = psutil.Process(driver.pid)
        while driver.poll() is None:
            try:
                peak = max(peak, process.memory_info().rss)
            except psutil.Error:
                break
            if stop_at is not None and stop_at.exists():
                os.kill(driver.pid, signal.SIGKILL)
            time.sleep(0.02)
    return driver.returncode, peak


@pytest.mark.long
@pytest.mark.timeout(600)
def test_indexing_a_million_keys_continues_after_a_kill(lister: str, tmp_path: Path) -> None:
    tree = scripted_tree(tmp_path, tmp_path / "run")
    tree["source"] = {"path": "s3://bucket/corpus", "shard_size": 1024}
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(tree))
    half = tmp_path / f"run/corpus/commits/{shard_name(NUM_KEYS // 2048)}.json"
    code, peak = index(config, lister, half)
    assert code == -signal.SIGKILL
    run = Run.open(tree["run_dir"])
    num_before = sum(1 for _ in run.storage.list("corpus/commits"))
    assert NUM_KEYS // 2048 < num_before < NUM_KEYS // 1024
    code, peak_again = index(config, lister)
    assert code == 0
    assert max(peak, peak_again) < MAX_BYTES
    manifest = run.manifest()
    assert manifest.num_images == NUM_KEYS
    number = 0
    for shard in manifest.shards:
        for row in run.corpus.columns(shard, ImageSize):
            assert row == ImageSize(key(number).removeprefix("corpus/"), 1000 + number % 7)
            number += 1
    assert number == NUM_KEYS
    print(f"peak memory {max(peak, peak_again) / 2**20:.0f} MiB")
