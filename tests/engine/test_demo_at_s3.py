"""The demo, all steps with real engines and a real training, with images and run directory at s3://."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mpa_ray.demo.world import FAMILIES
from tests.s3_server import SECRET, client, environment, files_holding, s3_server, upload

ROOT = Path(__file__).parents[2]
RUN = "s3://bucket/runs/demo"


@pytest.fixture
def server() -> Iterator[str]:
    with s3_server() as endpoint:
        yield endpoint


def command(*words: str, endpoint: str, timeout: int = 400) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False,
                          timeout=timeout, env=environment(endpoint))  # fmt: skip


@pytest.mark.timeout(900)
def test_the_demo_at_s3(server: str, tmp_path: Path) -> None:
    made = command("-m", "mpa_ray.demo.images", "--out", str(tmp_path), "--num-images", "96",
                   "--num-heldout-per-family", "2", endpoint=server)  # fmt: skip
    assert made.returncode == 0, made.stderr
    upload(tmp_path / "unlabeled", server, "unlabeled")
    overrides = {
        "run_dir": RUN,
        "source.path": "s3://bucket/unlabeled",
        "source.shard_size": "32",
        "evaluate.benchmarks.0.path": str(tmp_path / "heldout/questions.jsonl"),
    }
    words = [word for name, value in overrides.items() for word in (f"--{name}", value)]
    aligned = command("jobs/align.py", "--config", "mpa_ray/demo/demo.yaml", *words, endpoint=server, timeout=800)
    assert aligned.returncode == 0, aligned.stdout + aligned.stderr
    audited = command("jobs/audit.py", RUN, "--collect", "--older-than-hours", "0", endpoint=server)
    counts = json.loads(audited.stdout)
    assert (audited.returncode, counts["images"], counts["problems"]) == (0, 96, [])
    assert counts["kept"]["small"] > 0

    store = client(server)
    found = store.list_objects_v2(Bucket="bucket", Prefix="runs/demo/students/small/parity/merged/")["Contents"]
    assert {Path(o["Key"]).name for o in found} >= {"model.safetensors", "config.json", "tokenizer.json"}
    report = json.loads(store.get_object(Bucket="bucket", Key="runs/demo/report/report.json")["Body"].read())
    groups = report["students"]["small"]["measured"]["heldout"]["groups"]
    assert groups["all"]["after"]["num_questions"] == 2 * len(FAMILIES)
    assert SECRET not in aligned.stdout + aligned.stderr
    assert files_holding(SECRET, server, "runs/demo/") == []

    again = command("jobs/align.py", "--config", "mpa_ray/demo/demo.yaml", *words, endpoint=server)
    assert again.returncode == 0
    assert "annotate: already done" in again.stdout
    assert "level small: already done" in again.stdout
