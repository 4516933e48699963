"""Commands whose images cannot be read for a while, from the first line to the audit, without Ray."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from mpa_ray.cli import main
from tests.conftest import scripted_tree, write_images
from tests.local_stream import without_ray
from tests.refusing_proxy import RefusingProxy
from tests.s3_server import CREDENTIALS, s3_server, upload

OUT = ("/003.png", "/004.png", "/013.png")
NUM_IMAGES = 20


def nothing(*_: object) -> None:
    return None


@pytest.fixture
def proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RefusingProxy]:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    without_ray(monkeypatch)
    with s3_server() as endpoint:
        upload(write_images(tmp_path / "images", NUM_IMAGES, seed=7), endpoint, "outages")
        with RefusingProxy(endpoint, nothing) as proxy:
            monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
            yield proxy


class Commands:
    """Runs commands on one configuration, and reads the run's files without the project's code."""

    def __init__(self, folder: Path, proxy: RefusingProxy, capsys: pytest.CaptureFixture[str]) -> None:
        self.run_dir, self._config, self._capsys = folder / "run", folder / "config.yaml", capsys
        tree: dict[str, Any] = scripted_tree(folder, self.run_dir)
        tree["students"][0]["model"] = "bundled:demo/models/student"
        tree["source"] = {"path": "s3://bucket/outages", "shard_size": 8, "skip_duplicates": False}
        # A process keeps its pace and its clients by these settings.
        tree["object_store"] = {"endpoint_url": proxy.url, "max_attempts": 2, "first_pause_s": 0.01}
        self._config.write_text(yaml.safe_dump(tree))
        self.out = self.err = ""

    def run(self, name: str, *options: str) -> int:
        """The exit code of a command; its output is then in `out` and `err`."""
        code = main([name, "--config", str(self._config), *options])
        self.out, self.err = self._capsys.readouterr()
        return code

    def audit(self) -> dict[str, Any]:
        code = main(["audit", str(self.run_dir)])
        counts: dict[str, Any] = json.loads(self._capsys.readouterr().out)
        assert code == (1 if counts["problems"] else 0)
        return counts

    def rows(self, dataset: str) -> dict[str, dict[str, Any]]:
        """The rows that count, by image: those of the file that each shard's newest marker names."""
        markers = [json.loads(path.read_text()) for path in (self.run_dir / dataset).glob("[cg]*s/[0-9]*.json")]
        newest: dict[str, dict[str, Any]] = {}
        for marker in sorted(markers, key=lambda marker: marker["generation"]):
            newest[marker["shard"]] = marker
        files = [self.run_dir / newest[shard]["file"] for shard in sorted(newest)]
        rows = [row for file in files for row in pq.read_table(file).to_pylist()]
        assert len({row["image_id"] for row in rows}) == len(rows)
        return {row["image_id"]: row for row in rows}


@pytest.fixture
def commands(tmp_path: Path, proxy: RefusingProxy, capsys: pytest.CaptureFixture[str]) -> Commands:
    return Commands(tmp_path, proxy, capsys)


def out_of_reach(_: str, path: str, __: int) -> tuple[int, str] | None:
    return (500, "InternalError") if path.endswith(OUT) else None


def test_images_are_left_then_failed_then_made_again(commands: Commands, proxy: RefusingProxy) -> None:
    proxy.refuses = out_of_reach
    assert commands.run("index") == 0
    for _ in range(2):
        assert commands.run("annotate") == 3
        (line,) = commands.err.splitlines()
        assert line.startswith("Unfinished: annotate: 2 shards are unfinished, because 3 images could not be read (")
        assert line.endswith("Run the same command again to continue.")
        assert len(commands.rows("annotations")) == 4
    assert commands.run("annotate") == 3
    assert "annotate: of 16 rows, 18.8% failed (storage: 3), 0.0% were dropped" in commands.out
    (line,) = commands.err.splitlines()
    assert line.endswith("To process these images again, run the same command with --redo storage.")
    assert commands.run("annotate") == 0
    assert commands.run("identify") == 0
    assert commands.audit()["failed"] == {"storage": 3}
    annotations, verdicts = commands.rows("annotations"), commands.rows("verdicts/small")
    assert Counter(row["reason"] for row in annotations.values()) == {None: NUM_IMAGES - 3, "storage": 3}

    # While the images are out of reach, nothing changes.
    assert commands.run("annotate", "--redo", "storage") == 3
    assert commands.rows("annotations") == annotations

    proxy.refuses = nothing
    assert commands.run("annotate", "--redo", "unreadable") == 0
    assert "annotate: already done" in commands.out
    assert commands.run("annotate", "--redo", "storage") == 0
    assert "annotate: of 3 rows, 0.0% failed, 0.0% were dropped" in commands.out
    again = {name.removeprefix("/") for name in OUT}
    after = commands.rows("annotations")
    assert {name for name in annotations if annotations[name] != after[name]} == again
    assert {after[name]["state"] for name in again} == {"kept"}
    problems = commands.audit()["problems"]
    assert [problem.partition(" is older")[0] for problem in problems] == [
        "verdicts/small: shard 000000",
        "verdicts/small: shard 000001",
    ]
    num_before = len(proxy.requests)
    assert commands.run("identify") == 0
    assert sum(request.endswith(".png") for request in proxy.requests[num_before:]) == 3, (
        "only new annotations are judged"
    )
    counts, judged = commands.audit(), commands.rows("verdicts/small")
    assert (counts["problems"], counts["failed"], counts["annotated"]) == ([], {}, NUM_IMAGES)
    assert {name for name in verdicts if verdicts[name] != judged[name]} == again
    kept = {name for name, row in judged.items() if row["state"] == "kept"}
    exported = pq.read_table(commands.run_dir / "parity/small/parity.parquet").to_pylist()
    assert {row["image_id"] for row in exported} == kept
    assert counts["kept"] == {"small": len(kept)}
    for name in ("annotate", "identify"):
        assert commands.run(name, "--redo", "failed") == 0
        assert "already done" in commands.out


def test_a_student_that_cannot_read_images_is_made_again(commands: Commands, proxy: RefusingProxy) -> None:
    assert commands.run("index") == commands.run("annotate") == 0
    proxy.refuses = out_of_reach
    assert [commands.run("identify") for _ in range(3)] == [3, 3, 3]
    assert Counter(row["reason"] for row in commands.rows("verdicts/small").values())["storage"] == 3
    assert commands.audit()["failed"] == {"storage": 3}
    before = commands.rows("verdicts/small")
    proxy.refuses = nothing
    assert commands.run("identify", "--redo", "storage") == 0
    after = commands.rows("verdicts/small")
    assert {name for name in before if before[name] != after[name]} == {name.removeprefix("/") for name in OUT}
    assert (commands.audit()["problems"], commands.audit()["failed"]) == ([], {})


@pytest.mark.parametrize("code", ["ExpiredToken", "RequestTimeTooSkewed"])
def test_lost_access_ends_a_command_in_one_line(commands: Commands, proxy: RefusingProxy, code: str) -> None:
    assert commands.run("index") == 0
    read: list[str] = []

    def refuses(_: str, path: str, __: int) -> tuple[int, str] | None:
        read.extend([path] if path.endswith(".png") else [])
        return (400, code) if path.endswith(".png") and len(read) > 10 else None

    proxy.refuses = refuses
    assert commands.run("annotate") == 3
    (line,) = commands.err.splitlines()
    assert line.startswith("Unfinished: annotate:teacher: s3://bucket/outages/")
    assert code in line
    assert "Renew the credentials, and check the clock. Run the same command again to continue." in line
    assert len(commands.rows("annotations")) == 8
    proxy.refuses = nothing
    assert commands.run("annotate") == 0
    assert Counter(row["state"] for row in commands.rows("annotations").values()) == {"kept": NUM_IMAGES}


def test_align_reports_failed_images_at_its_end_and_makes_them_again(
    commands: Commands, proxy: RefusingProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mpa_ray.campaign.campaign.level_student", nothing)
    monkeypatch.setattr("mpa_ray.pipeline.cluster.cluster_resources", lambda: (9.0, 0.0))
    proxy.refuses = out_of_reach
    assert [commands.run("align") for _ in range(2)] == [3, 3]
    assert commands.run("align") == 3
    assert "images failed for reasons that may be temporary (annotate 3). All other work is done." in commands.err
    assert commands.audit()["problems"] == []
    proxy.refuses = nothing
    assert commands.run("align", "--redo", "storage") == 0
    counts = commands.audit()
    assert (counts["problems"], counts["failed"], counts["annotated"]) == ([], {}, NUM_IMAGES)
