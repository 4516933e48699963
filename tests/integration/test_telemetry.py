"""What Prometheus would scrape from this node: sums equal to those of the files, and the engines' load."""

from __future__ import annotations

import re
import time
import urllib.request
from pathlib import Path

import pytest
import ray

from mpa_ray.config import RunConfig
from mpa_ray.phases.annotate import annotate
from mpa_ray.phases.context import RunContext
from mpa_ray.phases.identify import identify
from mpa_ray.phases.index import index
from mpa_ray.run.audit import audit
from mpa_ray.run.run import Run
from tests.conftest import scripted_tree

pytestmark = pytest.mark.usefixtures("local_ray")


def scraped(pool: str) -> dict[str, float]:
    """Our samples of a pool, by name and labels other than Ray's own, as `rows kept/`, `tokens prompt`."""
    port = ray.nodes()[0]["MetricsExportPort"]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    found: dict[str, float] = {}
    for name, labels, value in re.findall(r"^ray_mpa_ray_(\w+)\{(.*)\} (\S+)$", text, re.MULTILINE):
        tags = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        if tags.get("pool") == pool:
            kind = "/".join(tags[tag] for tag in ("kind", "state", "reason") if tag in tags)
            key = f"{name.removesuffix('_total')} {kind}".strip()
            found[key] = found.get(key, 0) + float(value)
    return found


def test_counters_are_the_sums_of_the_files_and_gauges_show_the_load(images: Path, tmp_path: Path) -> None:
    tree = scripted_tree(images, tmp_path / "run", inconsistent_rate=0.2, unparsable_rate=0.1)
    tree["students"][0]["name"] = "watched"
    tree["students"][0]["engine"]["latency_s"] = 0.5
    tree["students"][0]["max_images_in_flight"] = 4
    config = RunConfig.model_validate(tree)
    for step in (index, annotate, identify):
        step(RunContext.open(config))
    run = Run.open(config.run_dir)
    counts, files = audit(run).to_json(), sum(f.stat().st_size for f in images.iterdir())
    asked = [v for v in run.verdicts("watched").rows(run.manifest().shards) if v.student_answer is not None]
    expected = {
        "images": 60,
        "rows kept/": counts["kept"]["watched"],
        **{f"rows dropped/{reason}": n for reason, n in counts["dropped"].items()},
    }
    deadline = time.monotonic() + 60
    # Processes send theirs on every ten seconds.
    while (found := scraped("identify:watched")).get("images") != 60 and time.monotonic() < deadline:
        time.sleep(1)
    assert {key: found.get(key) for key in expected} == expected
    assert 0 < found["bytes_read"] < files
    assert found["tokens output"] >= len(asked)
    assert found["tokens prompt"] > 32 * len(asked)
    assert found["seconds engine"] >= 0.5 * len(asked)
    assert {"images_waiting", "images_rendering", "engine_requests"} <= set(found)
