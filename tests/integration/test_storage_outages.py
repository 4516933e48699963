"""Outages of the store that holds the images: commands end in order, and the same commands lose nothing."""

from __future__ import annotations

import json
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from mpa_ray.run.run import Run
from tests.conftest import scripted_tree
from tests.integration.test_s3 import run_commands, run_job
from tests.refusing_proxy import RefusingProxy
from tests.s3_server import client, s3_server_of_user, upload

NUM_IMAGES = 60


@pytest.fixture(scope="module")
def server(images: Path) -> Iterator[str]:
    with s3_server_of_user() as endpoint:
        upload(images, endpoint, "corpus")
        yield endpoint


QUICK = {"max_attempts": 2, "first_pause_s": 0.05, "max_outage_s": 60.0}
"""Settings of an object store under which commands end soon."""


class Case:
    """A run in a local folder whose images are behind a proxy."""

    def __init__(self, proxy: RefusingProxy, folder: Path, images: Path, **teacher: Any) -> None:
        self.proxy, self.run_dir, self.config = proxy, folder / "run", folder / "config.yaml"
        tree: dict[str, Any] = scripted_tree(images, self.run_dir, **teacher)
        tree["source"]["path"] = "s3://bucket/corpus"
        if teacher:
            tree["teacher"]["max_images_in_flight"] = 1
        tree["object_store"] = QUICK
        self._write(tree)

    def change(self, **branches: dict[str, Any]) -> None:
        """Replace settings of some branches of the configuration; an empty branch loses all of its settings."""
        tree = yaml.safe_load(self.config.read_text())
        self._write(tree | {name: {**tree[name], **new} if new else {} for name, new in branches.items()})

    def _write(self, tree: dict[str, Any]) -> None:
        self.config.write_text(yaml.safe_dump(tree))

    def command(self, name: str, *options: str) -> CompletedProcess[str]:
        return run_job(name, "--config", str(self.config), *options, endpoint=self.proxy.url)

    def rows(self, dataset: str) -> list[dict[str, Any]]:
        """The rows that count, read without the project's code: each shard's file in its newest marker."""
        folder, newest = self.run_dir / dataset, {}
        for path in [*(folder / "commits").glob("[0-9]*.json"), *(folder / "generations").glob("[0-9]*.json")]:
            marker = json.loads(path.read_text())
            if marker["generation"] >= newest.get(marker["shard"], marker)["generation"]:
                newest[marker["shard"]] = marker
        files = [self.run_dir / newest[shard]["file"] for shard in sorted(newest)]
        return [row for file in files for row in pq.read_table(file).to_pylist()]


def one_line(done: CompletedProcess[str]) -> str:
    """The error of a command, which is one line; libraries may print warnings before it."""
    *warnings, line = done.stderr.splitlines()
    assert not [warning for warning in warnings if "Traceback" in warning or "Error" in warning], done.stderr
    return line


class BusyFor:
    """Refuses a third of the reads of images for some seconds from the first one on."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self._draws, self._lock = seconds, random.Random(5), threading.Lock()
        self.begun: list[float] = []
        """When each read began."""

    def __call__(self, method: str, path: str, _: int) -> tuple[int, str] | None:
        with self._lock:
            if method != "GET" or not path.endswith(".png"):
                return None
            self.begun.append(time.monotonic())
            is_busy = self.lasted_s < self._seconds and self._draws.random() < 1 / 3
        return (503, "SlowDownRead") if is_busy else None

    @property
    def lasted_s(self) -> float:
        """Seconds from the first read to the last."""
        return self.begun[-1] - self.begun[0]


def test_a_store_that_is_too_busy_for_a_while_costs_no_image(server: str, images: Path, tmp_path: Path) -> None:
    with RefusingProxy(server, BusyFor(10)) as proxy:
        case = Case(proxy, tmp_path, images)
        done = run_commands(case.config, "index", "annotate", endpoint=proxy.url)
        assert done.returncode == 0, done.stderr
        assert "annotate: of 60 rows, 0.0% failed, 0.0% were dropped" in done.stdout
        assert proxy.num_refused > 10
    assert Counter(row["state"] for row in case.rows("annotations")) == {"kept": NUM_IMAGES}


@pytest.mark.long
def test_a_store_that_is_too_busy_for_a_minute_costs_no_image(server: str, images: Path, tmp_path: Path) -> None:
    """The object store has its default settings, and the engine is slow, so that images are read throughout the
    minute."""
    contents = [path.read_bytes() for path in sorted(images.iterdir())]
    store, num_images = client(server), 1200
    for number in range(num_images):
        # Bytes behind the end of the picture make it another file.
        body = contents[number % len(contents)] + b"%d" % number
        store.put_object(Bucket="bucket", Key=f"many/{number:04d}.png", Body=body)
    busy = BusyFor(60)
    with RefusingProxy(server, busy) as proxy:
        case = Case(proxy, tmp_path, images, latency_s=0.4)
        case.change(object_store={}, source={"path": "s3://bucket/many"}, teacher={"max_images_in_flight": 16})
        assert case.command("index").returncode == 0
        started = time.monotonic()
        done = case.command("annotate")
        took_s = time.monotonic() - started
        assert done.returncode == 0, done.stderr
        assert f"annotate: of {num_images} rows, 0.0% failed, 0.0% were dropped" in done.stdout
        print(f"{len(busy.begun)} reads in {busy.lasted_s:.0f} s, {proxy.num_refused} refused; {took_s:.0f} s in all")
        assert busy.lasted_s > 60
        assert proxy.num_refused > 100
    assert Counter(row["state"] for row in case.rows("annotations")) == {"kept": num_images}


@pytest.mark.long
def test_credentials_that_expire_end_the_command_at_once(server: str, images: Path, tmp_path: Path) -> None:
    expired_at: list[float] = []

    def refuses(_: str, path: str, __: int) -> tuple[int, str] | None:
        num_read = sum(request.endswith(".png") for request in proxy.requests)
        if num_read < 30 or not path.endswith(".png"):
            return None
        expired_at.append(time.monotonic())
        return 400, "ExpiredToken"

    with RefusingProxy(server, refuses) as proxy:
        # A shard of the teacher takes longer than the command may take to end.
        case = Case(proxy, tmp_path, images, latency_s=12.0)
        assert case.command("index").returncode == 0
        done = case.command("annotate")
        assert time.monotonic() - expired_at[0] < 30
        assert done.returncode == 3, done.stderr
        assert one_line(done).startswith("Unfinished: annotate:teacher: s3://bucket/corpus/")
        assert "ExpiredToken" in one_line(done)
        assert one_line(done).endswith(
            "Renew the credentials, and check the clock. Run the same command again to continue."
        )
        proxy.refuses = lambda *_: None
        case.config.write_text(case.config.read_text().replace("latency_s: 12.0", "latency_s: 0.0"))
        again = case.command("annotate")
        assert again.returncode == 0, again.stderr
    assert Counter(row["state"] for row in case.rows("annotations")) == {"kept": NUM_IMAGES}


@pytest.mark.long
def test_images_that_cannot_be_read_for_now_are_left_then_failed_then_made_again(
    server: str, images: Path, tmp_path: Path
) -> None:
    out = ("/003.png", "/004.png", "/030.png")

    def refuses(_: str, path: str, __: int) -> tuple[int, str] | None:
        return (500, "InternalError") if path.endswith(out) else None

    with RefusingProxy(server, refuses) as proxy:
        case = Case(proxy, tmp_path, images)
        assert case.command("index").returncode == 0
        left = case.command("annotate")
        assert left.returncode == 3, left.stderr
        assert one_line(left).startswith(
            "Unfinished: annotate: 2 shards are unfinished, because 3 images could not be read (TransientError: "
        )
        assert len(case.rows("annotations")) == NUM_IMAGES - 16
        for shard in ("000000", "000003"):
            # Starting Ray once more would say the same.
            assert Run.open(str(case.run_dir)).annotations.count_unread(shard, 0, "the second command") == 2
        third = case.command("annotate")
        assert third.returncode == 3
        assert "annotate: of 16 rows, 18.8% failed (storage: 3), 0.0% were dropped" in third.stdout
        assert "To process these images again, run the same command with --redo storage." in one_line(third)
        first = {row["image_id"]: row for row in case.rows("annotations")}
        assert Counter(row["reason"] for row in first.values()) == {None: 57, "storage": 3}

        proxy.refuses = lambda *_: None
        redone = case.command("annotate", "--redo", "storage")
        assert redone.returncode == 0, redone.stderr
        assert "annotate: of 3 rows, 0.0% failed" in redone.stdout
        second = {row["image_id"]: row for row in case.rows("annotations")}
        again = {path.rpartition("/")[2] for path in out}
        assert {name for name in first if first[name] != second[name]} == again
        assert {second[name]["state"] for name in again} == {"kept"}


def test_missing_credentials_are_a_wrong_set_up(
    server: str, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RefusingProxy(server, lambda *_: None) as proxy:
        case = Case(proxy, tmp_path, images)
        monkeypatch.setattr("tests.integration.test_s3.environment", _environment_without_credentials)
        done = case.command("index")
    assert done.returncode == 2
    assert one_line(done).startswith("ConfigError: source.path = 's3://bucket/corpus")


def _environment_without_credentials(endpoint: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    nowhere = dict.fromkeys(("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"), "/nonexistent")
    return {**kept, **nowhere, "AWS_EC2_METADATA_DISABLED": "true", "AWS_ENDPOINT_URL": endpoint}
