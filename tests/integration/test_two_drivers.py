"""Two commands at the same time on one run, with different and with equal settings."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from mpa_ray.run.run import Run
from tests.conftest import scripted_tree
from tests.integration.test_jobs import ROOT, command, leveling_tree, run_audit, run_job
from tests.integration.test_leveling_faults import SETTINGS

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]


def run_both(one: list[str], other: list[str]) -> list[tuple[int, str, str]]:
    """Run two commands at the same time. Returns the exit code, the output and the errors of each."""
    drivers = [
        subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for words in (one, other)
    ]
    outputs = [driver.communicate(timeout=280) for driver in drivers]
    return [(driver.returncode, *output) for driver, output in zip(drivers, outputs, strict=True)]


def test_commands_with_different_settings_do_not_mix_their_rows(images: Path, tmp_path: Path) -> None:
    tree = scripted_tree(images, tmp_path / "run", latency_s=0.5)
    tree["teacher"]["max_images_in_flight"] = 2
    assert run_job("index", tree, tmp_path).returncode == 0
    seeds = [command("annotate", tree, tmp_path, f"--annotate.sampling.seed={seed}") for seed in (7, 8)]
    results = sorted(run_both(*seeds))
    assert [code for code, _, _ in results] == [0, 2], results
    *_, last = results[1][2].splitlines()
    assert last.startswith("ConfigError: ")
    assert "annotate.sampling.seed: was " in last
    run = Run.open(tree["run_dir"])
    markers = [json.loads(run.storage.read(path)) for path in run.storage.list("annotations/commits")]
    assert len(markers) == run.manifest().num_shards
    assert {marker["fingerprint"] for marker in markers} == {run.fingerprints.digest("annotations")}
    # The verdicts are missing, and nothing else is.
    _, counts = run_audit(tree)
    assert [problem for problem in counts["problems"] if not problem.startswith(("verdicts/", "parity/"))] == []


def test_one_of_two_commands_trains_a_student_and_the_other_waits(images: Path, tmp_path: Path) -> None:
    tree = leveling_tree(images, tmp_path / "run")
    tree["students"][0]["level"] = {**SETTINGS, "num_workers": 1}
    for job in ("index", "annotate", "identify"):
        assert run_job(job, tree, tmp_path).returncode == 0
    level = command("level", tree, tmp_path)
    results = run_both(level, level)
    assert [code for code, _, _ in results] == [0, 0], results
    waited = [output for _, output, _ in results if "is working on this; waiting until it ends" in output]
    assert len(waited) == 1
    assert "level small: another command has finished this training" in waited[0]
    folder = tmp_path / "run/students/small/parity"
    training = json.loads((folder / "training.json").read_text())
    assert training["resumed"] == []
    assert training["num_unreadable"] == 0
    complete = json.loads((folder / "complete.json").read_text())
    assert (complete["owner"], complete["has_checksums"]) == (1, True)
