"""A campaign: one pass of the teacher, verdicts as annotations come, and failures that stop no other student."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mpa_ray.campaign.campaign import align
from mpa_ray.config import RunConfig, ScriptedEngineConfig, StudentConfig
from mpa_ray.errors import RunError
from mpa_ray.models.shared_engines import EngineGroup
from mpa_ray.phases.annotate import annotate
from mpa_ray.phases.context import RunContext
from mpa_ray.phases.identify import identify
from mpa_ray.phases.index import index
from mpa_ray.phases.level import level
from mpa_ray.phases.rematch import rematch
from mpa_ray.report.status import status
from mpa_ray.run.audit import audit
from mpa_ray.run.run import Run
from tests.conftest import indexing_until
from tests.integration.test_jobs import leveling_tree

pytestmark = [pytest.mark.usefixtures("local_ray"), pytest.mark.timeout(600)]


def tree_of(images: Path, folder: Path) -> dict[str, Any]:
    """Two students with one model, one whose answers all fail, one without a checkpoint, and one that is damaged."""
    tree = leveling_tree(images, folder / "run")
    (small,) = tree["students"]
    small |= {"arms": ["parity", "consistent"]}
    small["level"] |= {"batch_size": 30, "retained_samples": 0}
    all_fail = {**small["engine"], "fail_on": [f"{number:03d}.png" for number in range(60)]}
    failing = {**small, "name": "failing", "engine": all_fail, "max_pixels": 9999}
    absent = {**small, "name": "absent", "model": "./no/such/model", "engine": {"kind": "vllm"}}
    (folder / "damaged").mkdir()
    (folder / "damaged/adapter_config.json").write_text("{")
    damaged = {**absent, "name": "damaged", "model": str(folder / "damaged")}
    twin = {**small, "name": "twin", "arms": ["parity"], "rounds": 2}
    twin["level"] = {**small["level"], "learning_rate": 5.0e-4}
    tree["students"] = [small, failing, absent, twin, damaged]
    tree["limits"] = {"min_images": 8}
    return tree


def test_a_campaign_aligns_every_student_that_can_be_aligned(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = tree_of(images, tmp_path)
    # Verdicts come while the teacher is still working.
    with pytest.raises(RunError, match=r"^absent, damaged, failing failed; all other.*absent: students.2.model"):
        align(RunConfig.model_validate(tree), indexing_until("verdicts/small"))
    output = capsys.readouterr().out
    run = Run.open(tree["run_dir"])
    for trained in ("small/parity", "small/consistent", "twin/parity", "twin.round2/parity"):
        assert run.storage.exists(f"students/{trained}/complete.json")
    assert not run.storage.exists("students/failing/parity/complete.json")
    assert audit(run).num_annotated == 60
    assert run.read_json("phases/annotate.json")["num_images"] == 60
    assert not run.storage.exists("phases/identify.twin.json")
    assert "identify twin, as small: 8 shards" in output.splitlines()
    report = json.loads(run.storage.read("report/report.json"))
    assert set(report["students"]) == {"small", "failing", "absent", "damaged", "twin", "twin.round2"}
    assert report["students"]["twin.round2"]["model"] == f"{run.storage.root}/students/twin/parity/merged"
    assert run.read_json("phases/identify.twin.round2.json")["num_images"] == 60
    assert {(row["student"], row["arm"]) for row in report["leaderboard"]} == {
        ("small", "parity"),
        ("small", "consistent"),
        ("twin", "parity"),
        ("twin.round2", "parity"),
    }
    state = status(run)
    assert state.finished == ["small", "small consistent", "twin", "twin.round2"]
    assert {"identify failing", "identify absent"} <= {phase.name for phase in state.remaining}
    errors = report["problems"]["errors"]
    assert "students.2.model" in errors["identify absent"]
    assert "images failed, more than limits.max_failed_rate" in errors["identify failing"]
    assert "Missing: identify failing" in run.storage.read("report/index.html").decode()

    tree["students"] = [s for s in tree["students"] if s["name"] in ("small", "twin")]
    tree["max_concurrent_phases"] = 1
    align(RunConfig.model_validate(tree))
    again = capsys.readouterr().out.splitlines()
    done = {"annotate", "identify twin", "level small", "level small consistent", "level twin"}
    done |= {"identify twin.round2", "level twin.round2"}
    assert {f"{phase}: already done" for phase in done} <= set(again)
    assert run.read_json("phases/annotate.json")["num_images"] == 60
    recorded = {student["name"] for student in run.read_json("run.json")["config"]["students"]}
    assert recorded == {"small", "twin", "twin.round2"}

    tree["students"][1]["rounds"] = 3
    config = RunConfig.model_validate(tree)
    for step in (level, rematch):
        step(RunContext.open(config))
        assert "twin.round3 has no parity samples yet and is skipped" in capsys.readouterr().out


def test_when_a_shared_engine_fails_each_model_continues_alone(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = leveling_tree(images, tmp_path / "run")
    (small,) = tree["students"]
    all_fail = {**small["engine"], "fail_on": [f"{number:03d}.png" for number in range(60)]}
    failing = {**small, "name": "failing", "engine": all_fail, "max_pixels": 8888}
    tree["students"] = [failing, small, {**small, "name": "larger", "max_pixels": 9999}]
    tree["limits"] = {"min_images": 8, "max_image_deaths": 1, "max_poison_images": 0}
    config = RunConfig.model_validate(tree)
    index(RunContext.open(config))
    annotate(RunContext.open(config))

    def share_a_dying_engine(_: object, students: Sequence[StudentConfig]) -> list[EngineGroup]:
        dying = ScriptedEngineConfig(kind="scripted", die_on=["000.png"])
        base = students[0].model_copy(update={"engine": dying})
        return [EngineGroup(base, dict.fromkeys(student.name for student in students))]

    with pytest.raises(RunError, match="8 of 8 images failed"):
        identify(RunContext.open(config), share_a_dying_engine)
    warning = (
        r"WARNING: the engine shared by failing, small, larger failed: .*1 image of shard .* killed engines.* "
        r"Each model continues alone\."
    )
    assert re.search(warning, capsys.readouterr().out)
    assert {"phases/identify.small.json", "phases/identify.larger.json"} <= set(
        Run.open(config.run_dir).storage.list("phases")
    )
