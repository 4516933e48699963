"""What the benchmarks of campaigns and arms compute from the records of their runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import arms, campaign
from benchmarks.bundled_world import inside_of, measured
from benchmarks.process_tree import ProcessTree
from mpa_ray.config import RunConfig
from mpa_ray.records import ParitySample


def test_every_student_and_arm_is_a_valid_configuration(tmp_path: Path) -> None:
    models = {name: str(tmp_path / name) for name in campaign.ADAPTERS}
    config = RunConfig.model_validate(campaign.tree_for(list(campaign.STUDENTS), models, tmp_path, tmp_path, 0))
    assert [student.name for student in config.students] == list(campaign.STUDENTS)
    assert len({student.level.model_dump_json() + student.model for student in config.students}) == 8
    trained = RunConfig.model_validate(arms.tree_for(0, tmp_path)).students
    assert {(student.name, arm) for student in trained for arm in student.arms} == set(arms.ARMS.values())


def run_of(wall_s: float, after: dict[str, float], num_images: int = 500) -> dict[str, Any]:
    return {
        "wall_s": wall_s,
        "cpu_s": 2 * wall_s,
        "engine_starts": 5,
        "identification_passes": 1,
        "phase_s": wall_s,
        "teacher": {"images": num_images, "requests": 2 * num_images, "prompt_tokens": 90_000, "output_tokens": 10_000},
        "students": {name: {"num_parity": 100, "before": 70.0, "after": value} for name, value in after.items()},
    }


def test_a_campaign_is_compared_with_the_sum_of_single_runs() -> None:
    both = {"qwen-lora": 80.0, "internvl-adapter": 90.0}
    separate = {"qwen-lora": run_of(90, {"qwen-lora": 82.5}), "internvl-adapter": run_of(110, {"internvl-adapter": 90})}
    lines = campaign.table(run_of(125, both), separate).splitlines()
    assert "| wall time, s | 125 | 200 | 90 to 110 | 1.60 |" in lines
    assert "| images that the teacher annotated | 500 | 1,000 | 500 | 2.00 |" in lines
    assert "| the teacher's tokens, prompts and replies | 100,000 | 200,000 | 100,000 | 2.00 |" in lines
    assert "| qwen-lora | student | lora | 100, 100 | 70.0 | 80.0, 82.5 | 90 |" in lines
    assert lines[-1].endswith("85.0 in the campaign, 86.2 alone. The largest difference of one student is 2.5 points.")


GOOD: dict[str, Any] = {
    "written_again": [],
    "incomplete": [],
    "error": "RunError: absent failed; all other work is done. ...",
    "killed": {"exit_code": -9, "left_behind": []},
    "again": {"exit_code": 1, "left_behind": []},
}


@pytest.mark.parametrize(
    ("change", "problems"),
    [
        ({}, []),
        ({"written_again": ["phases/annotate.json"]}, ["phases/annotate.json was written again"]),
        ({"incomplete": ["qwen-lora"]}, ["qwen-lora is not complete"]),
        ({"killed": {"exit_code": -9, "left_behind": ["7: raylet"]}}, ["left behind: 7: raylet"]),
        ({"killed": {"exit_code": 1, "left_behind": []}}, ["the first command was not killed: exit code 1"]),
        ({"error": "RunError: absent, small failed; ..."}, ["exit code 1, 'RunError: absent, small failed; ...'"]),
    ],
)
def test_the_problems_of_a_campaign_with_faults_are_named(change: dict[str, Any], problems: list[str]) -> None:
    assert campaign.problems_of({**GOOD, **change}) == problems


def test_finished_files_are_those_of_finished_work(tmp_path: Path) -> None:
    finished = {
        "annotations/commits/000000.json",
        "evaluation/heldout/predictions/a.before/commits/000000.json",
        "parity/a/manifest.json",
        "phases/annotate.json",
        "phases/level.a.json",
        "phases/check.a.json",
        "students/a/parity/complete.json",
        "students/a/parity/merged/model.safetensors",
        "students/a/parity/adapter/adapter_model.safetensors",
    }
    others = {
        "run.json",
        "annotations/data/000000-1.parquet",
        "annotations/commits/.half.json",
        "students/a/parity/merged/README.md",
        "students/b/parity/merged/model.safetensors",
        "phases/level.b.json",
    }
    for name in finished | others:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert campaign.finished_files(tmp_path).keys() == finished


def test_a_process_that_outlives_its_parents_is_found() -> None:
    grandchild = [sys.executable, "-c", "import time; time.sleep(100)"]
    parent = f"import subprocess; p = subprocess.Popen({grandchild!r}); print(p.pid, flush=True); p.wait()"
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        tree = ProcessTree(process.pid)
        tree.update()
        assert {alive.pid for alive in tree.alive()} == {process.pid, pid}
        assert tree.cpu_s > 0
        process.kill()
    (orphan,) = tree.alive()
    assert orphan.pid == pid
    assert tree.wait_until_gone(0.2) == ([], [orphan.name()])
    orphan.kill()
    assert tree.wait_until_gone(30)[1] == []


def test_the_table_shows_the_means_of_an_arm_over_seeds() -> None:
    rows = [
        {
            "seed": seed,
            "arm": "parity",
            "num_samples": 600,
            "training_s": 20.0,
            "families_inside": ["count"],
            "before": 70.0,
            "after": after,
            "inside_before": 10.0,
            "inside_after": 50.0,
            "outside_before": 99.0,
            "outside_after": 90.0,
        }
        for seed, after in enumerate((80.0, 85.0))
    ]
    line = "| parity | 600 | 20 | 70.0 | 82.5 | +12.5 (+10.0, +15.0) | 10.0, 50.0 | 99.0, 90.0 |"
    assert arms.table(rows).splitlines()[-1] == line


def test_scores_are_split_by_whether_a_family_was_trained_on() -> None:
    texts = ["How many stars are there?"] * 19 + ["What colour is the star?"]
    inside = inside_of([ParitySample(f"{n}", "i", "/i", question, "a", "b") for n, question in enumerate(texts)])
    assert inside == {"count", "colour"}
    assert inside_of([ParitySample("0", "i", "/i", texts[0], "a", "b")] * 99) == {"count"}
    right = {"count": 0.5, "colour": 1.0, "chart": 1.0, "number": 0.8, "place": 0.0, "position": 1.0, "shape": 1.0}
    groups = {f"family: {name}": {"mean": mean, "num_questions": 10} for name, mean in {**right, "word": 1.0}.items()}
    after = {"groups": {"all": {"mean": 0.7, "num_questions": 80}, **groups}}
    before = {"groups": {name: {**group, "mean": 0.0} for name, group in after["groups"].items()}}
    models = {"a.before": before, "a.after": after}
    scores = measured({"heldout": {"models": models}}, "a", "parity", inside)
    assert {scores[key] for key in ("before", "inside_before", "outside_before")} == {0.0}
    assert (scores["after"], scores["inside_after"], scores["outside_after"]) == (70.0, 75.0, 80.0)
