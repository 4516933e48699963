"""Metrics that Prometheus scrapes from this node: sums equal to those of the files, and the engines' load."""

from __future__ import annotations

import json
import re
import time
import urllib.request
from pathlib import Path

import pytest
import ray

from mpa_ray.config import EvaluationRunConfig, RunConfig
from mpa_ray.phases.annotate import annotate
from mpa_ray.phases.context import RunContext
from mpa_ray.phases.evaluate import evaluate
from mpa_ray.phases.identify import identify
from mpa_ray.phases.index import index
from mpa_ray.run.audit import audit
from mpa_ray.run.run import Run
from tests.conftest import scripted_tree, write_images

pytestmark = pytest.mark.usefixtures("local_ray")


def scraped(pool: str) -> dict[str, float]:
    """Our samples of a pool, by name and our own labels, such as `rows kept/` and `tokens prompt`."""
    port = ray.nodes()[0]["MetricsExportPort"]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    samples: dict[str, float] = {}
    for name, labels, value in re.findall(r"^ray_mpa_ray_(\w+)\{(.*)\} (\S+)$", text, re.MULTILINE):
        tags = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        if tags.get("pool") == pool:
            kind = "/".join(tags[tag] for tag in ("kind", "state", "reason") if tag in tags)
            key = f"{name.removesuffix('_total')} {kind}".strip()
            samples[key] = samples.get(key, 0) + float(value)
    return samples


def scraped_once_counted(pool: str, num_images: int) -> dict[str, float]:
    """A pool's samples once they count so many images: processes report only from time to time."""
    deadline = time.monotonic() + 60
    while (samples := scraped(pool)).get("images") != num_images and time.monotonic() < deadline:
        time.sleep(1)
    return samples


def test_counters_are_the_sums_of_the_files_and_gauges_show_the_load(images: Path, tmp_path: Path) -> None:
    tree = scripted_tree(images, tmp_path / "run", inconsistent_rate=0.2, unparsable_rate=0.1)
    tree["students"][0]["name"] = "watched"
    tree["students"][0]["engine"]["latency_s"] = 0.5
    tree["students"][0]["max_images_in_flight"] = 4
    config = RunConfig.model_validate(tree)
    for phase in (index, annotate, identify):
        phase(RunContext.open(config))
    run = Run.open(config.run_dir)
    counts, files = audit(run).to_json(), sum(f.stat().st_size for f in images.iterdir())
    answered = [v for v in run.verdicts("watched").rows(run.manifest().shards) if v.student_answer is not None]
    expected = {
        "images": 60,
        "rows kept/": counts["kept"]["watched"],
        **{f"rows dropped/{reason}": n for reason, n in counts["dropped"].items()},
    }
    samples = scraped_once_counted("identify:watched", num_images=60)
    assert {key: samples.get(key) for key in expected} == expected
    assert 0 < samples["bytes_read"] < files
    assert samples["tokens output"] >= len(answered)
    assert samples["tokens prompt"] > 32 * len(answered)
    assert samples["seconds engine"] >= 0.5 * len(answered)
    assert {"images_waiting", "images_rendering", "engine_requests"} <= set(samples)


def test_rows_of_predictions_are_counted_by_state_and_code(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "labelled", 6)
    (folder / "005.png").write_bytes(b"no image")
    questions = [
        {"question_id": f"q{number}", "image": f"{number:03d}.png", "question": "How many?", "answers": ["1"]}
        for number in range(6)
    ]
    (folder / "questions.json").write_text(json.dumps(questions))
    engine = {"kind": "scripted", "fail_on": ["003.png", "004.png"]}
    tree = {
        "run_dir": str(tmp_path / "run"),
        "task": "demo_world",
        "evaluate": {
            "benchmarks": [{"path": str(folder / "questions.json")}],
            "models": [{"name": "counted", "model": "scripted", "engine": engine}],
        },
    }
    evaluate(RunContext.open(EvaluationRunConfig.model_validate(tree)))
    rows = {
        name.removeprefix("rows "): number
        for name, number in scraped_once_counted("evaluate:counted", num_images=6).items()
        if name.startswith("rows ")
    }
    assert rows == {"kept/": 3, "failed/request_failed": 2, "failed/not_an_image": 1}
