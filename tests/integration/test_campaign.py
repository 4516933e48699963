"""Many students in one job: one pass of the teacher, verdicts as annotations come, failures that stay alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mpa_ray import campaign
from mpa_ray.config import RunConfig
from mpa_ray.errors import RunError
from mpa_ray.store.audit import audit
from mpa_ray.store.run import Run
from tests.integration.test_jobs import leveling_tree

pytestmark = [pytest.mark.usefixtures("local_ray"), pytest.mark.timeout(600)]


def tree_of(images: Path, folder: Path) -> dict[str, Any]:
    """Two students of one model, one whose answers mostly fail, and one that is not there; a teacher that is slow."""
    tree = leveling_tree(images, folder / "run")
    (small,) = tree["students"]
    small["level"] |= {"batch_size": 30, "retained_samples": 0}
    all_fail = {**small["engine"], "fail_on": [f"{number:03d}.png" for number in range(60)]}
    failing = {**small, "name": "failing", "engine": all_fail, "max_pixels": 9999}
    absent = {**small, "name": "absent", "model": "./no/such/model", "engine": {"kind": "vllm"}}
    twin = {**small, "name": "twin", "level": {**small["level"], "learning_rate": 5.0e-4}}
    tree["students"] = [small, failing, absent, twin]
    tree["teacher"]["engine"]["latency_s"] = 0.3
    tree["limits"] = {"min_images": 8}
    return tree


def test_a_campaign(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree = tree_of(images, tmp_path)
    with pytest.raises(RunError, match=r"^absent, failing failed, what is left is done.*absent: students.2.model"):
        campaign.align(RunConfig.model_validate(tree))
    told = capsys.readouterr().out
    run = Run.open(tree["run_dir"])
    for name in ("small", "twin"):
        assert run.storage.exists(f"students/{name}/parity/complete.json")
    assert not run.storage.exists("students/failing/parity/complete.json")
    assert audit(run)["annotated"] == 60
    assert run.read_json("phases/annotate.json")["num_images"] == 60
    assert not run.storage.exists("phases/identify.twin.json")
    lines = told.splitlines()
    # The student was asked about what was annotated before the teacher was through.
    assert "identify twin, as small: 8 shards" in lines
    began = next(n for n, line in enumerate(lines) if line.startswith("identify small: ") and "images" in line)
    assert began < next(n for n, line in enumerate(lines) if line.startswith("annotate: done"))
    report = json.loads(run.storage.read("report/report.json"))
    assert set(report["students"]) == {"small", "twin"}

    tree["students"] = [s for s in tree["students"] if s["name"] in ("small", "twin")]
    campaign.align(RunConfig.model_validate(tree))
    again = capsys.readouterr().out.splitlines()
    assert {"annotate: already done", "level small: already done", "level twin: already done"} <= set(again)
    assert run.read_json("phases/annotate.json")["num_images"] == 60
