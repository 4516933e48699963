"""Training that is killed and resumed, even with other workers, ends with the same weights as undisturbed training."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from mpa_ray.run.logs import deaths
from mpa_ray.storage.local import LocalStorage
from tests.integration.test_jobs import ROOT, command, distance, kill_when, leveling_tree, run_job

pytestmark = pytest.mark.timeout(900)
SETTINGS = {
    "batch_size": 4,
    "checkpoint_every_steps": 3,
    "learning_rate": 1e-3,
    "tokens_per_micro_batch": 200,
    "num_workers": 2,
}
NUM_STEPS = 15


@pytest.fixture(scope="module")
def prepared(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with 60 parity samples, up to leveling."""
    folder = tmp_path_factory.mktemp("prepared")
    for job in ("index", "annotate", "identify"):
        done = run_job(job, leveling_tree(images, folder / "run"), folder)
        assert done.returncode == 0, done.stderr
    return folder / "run"


def tree_at(images: Path, folder: Path, **level: Any) -> dict[str, Any]:
    tree = leveling_tree(images, folder)
    tree["students"][0]["level"] = {**SETTINGS, **level}
    return tree


def training_of(run: Path) -> dict[str, Any]:
    state: dict[str, Any] = json.loads((run / "students/small/parity/training.json").read_text())
    return state


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "students/small/parity/adapter/adapter_model.safetensors")


def num_valid(run: Path) -> int:
    """How many checkpoints Ray Train has accepted as complete."""
    snapshot = run / "students/small/parity/checkpoints/checkpoint_manager_snapshot.json"
    try:
        return len(json.loads(snapshot.read_text())["checkpoint_results"])
    except (FileNotFoundError, ValueError):
        return 0


def losses_of(run: Path) -> list[float]:
    return [row["loss"] for row in training_of(run)["log"] if "loss" in row]


@pytest.fixture(scope="module")
def undisturbed(images: Path, prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    run = Path(shutil.copytree(prepared, folder / "run"))
    done = run_job("level", tree_at(images, run), folder)
    assert done.returncode == 0, done.stderr
    assert training_of(run)["step"] == NUM_STEPS
    return run


def assert_same(run: Path, undisturbed: Path, share: float = 0.02) -> None:
    """The weights differ by a small share of what training changed, since sums are in another order."""
    expected = weights_of(undisturbed)
    # Adapters start with B = 0 and a seeded A, so training changed B and a part of A.
    changed = math.sqrt(sum(w.square().sum().item() for name, w in expected.items() if "lora_B" in name))
    assert distance(weights_of(run), expected) < share * changed


def workers_of(driver: psutil.Process) -> list[psutil.Process]:
    """The training workers of a driver that started its own Ray."""
    return [
        process
        for process in driver.children(recursive=True)
        if any("RayTrainWorker" in word for word in process.cmdline())
    ]


def level_with_a_worker_killed(
    tree: dict[str, Any], folder: Path, when: Callable[[], bool]
) -> tuple[subprocess.CompletedProcess[str], int]:
    """What the job printed, and the process id of the worker."""
    with subprocess.Popen(
        command("level", tree, folder), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as driver:
        deadline = time.monotonic() + 200
        while not when():
            assert driver.poll() is None, "the job ended before a worker could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.02)
        # Workers are found in any order of their ranks.
        victim, *_ = workers_of(psutil.Process(driver.pid))
        victim.kill()
        out, err = driver.communicate(timeout=300)
    return subprocess.CompletedProcess(driver.args, driver.returncode, out, err), victim.pid


@pytest.mark.long
@pytest.mark.parametrize("moment", ["mid-step", "upload"])
def test_a_worker_is_killed(moment: str, images: Path, prepared: Path, undisturbed: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(prepared, tmp_path / "run"))
    parity = run / "students/small/parity"

    def reached() -> bool:
        if moment == "upload":
            # There are files of another checkpoint, which is not complete yet.
            return len(list(parity.glob("checkpoints/checkpoint_*"))) > num_valid(run) >= 1
        return num_valid(run) >= 1

    done, victim = level_with_a_worker_killed(tree_at(images, run), tmp_path, reached)
    assert done.returncode == 0, done.stderr
    training = training_of(run)
    assert training["step"] == NUM_STEPS
    (resumed,) = training["resumed"]
    assert resumed["from_step"] % SETTINGS["checkpoint_every_steps"] == 0
    assert resumed["had_reached"] - resumed["from_step"] <= SETTINGS["checkpoint_every_steps"] + 5
    assert "level small: resumed from step" in done.stdout
    assert_same(run, undisturbed)
    storage = LocalStorage(str(run))
    assert deaths(storage).num_by_phase == {"level small": 1}
    (death,) = deaths(storage).latest
    assert re.match(rf"the training worker [01] \(process {victim} on ", death.process)
    assert "SIGKILL" in death.cause
    assert death.log is not None


@pytest.mark.long
def test_a_training_that_fails_names_the_worker_that_died(images: Path, prepared: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(prepared, tmp_path / "run"))
    tree = tree_at(images, run, max_failures=0)
    is_logged = (run / "students/small/parity/training.json").exists
    done, victim = level_with_a_worker_killed(tree, tmp_path, is_logged)
    assert done.returncode == 1
    *_, last = done.stderr.splitlines()
    (death,) = deaths(LocalStorage(str(run))).latest
    assert f"(process {victim} on " in death.process
    worker = death.process.removeprefix("the ").partition(" (")[0]
    assert last.startswith(f"RunError: level small: training failed: {worker}: the process ended without")
    assert f"(log: {run}/logs/level.small--" in last
    status = subprocess.run(
        [sys.executable, "jobs/status.py", str(run)], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert last.removeprefix("RunError: ") in status


@pytest.mark.long
@pytest.mark.parametrize("other", [{"num_workers": 1, "tokens_per_micro_batch": 4000}, {"parallel": "fsdp"}], ids=str)
def test_the_driver_is_killed_and_training_resumes_with_other_workers(
    other: dict[str, Any], images: Path, prepared: Path, undisturbed: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(prepared, tmp_path / "run"))
    kill_when("level", tree_at(images, run), tmp_path, lambda: num_valid(run) >= 1)
    done = run_job("level", tree_at(images, run, **other), tmp_path)
    assert done.returncode == 0, done.stderr
    (resumed,) = training_of(run)["resumed"]
    # Steps do not depend on the workers, so no sample is left out, and only steps after the checkpoint are repeated.
    assert 0 < resumed["from_step"] < NUM_STEPS
    assert resumed["workers"] == other.get("num_workers", 2)
    assert_same(run, undisturbed)
    assert run_job("level", tree_at(images, run, **other), tmp_path).stdout.splitlines() == [
        "level small: already done"
    ]


@pytest.mark.long
def test_fsdp_and_ddp_train_the_same_weights(images: Path, prepared: Path, undisturbed: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(prepared, tmp_path / "run"))
    done = run_job("level", tree_at(images, run, parallel="fsdp"), tmp_path)
    assert done.returncode == 0, done.stderr
    assert losses_of(run) == pytest.approx(losses_of(undisturbed), rel=1e-3)
    assert_same(run, undisturbed)


EARLY_STOP = {
    "learning_rate": 0.3,
    "warmup_ratio": 0.0,
    "checkpoint_every_steps": 50,
    "holdout": {"share": 0.2, "every_steps": 1, "patience": 2},
}


@pytest.mark.long
@pytest.mark.parametrize("level", [{}, EARLY_STOP], ids=["last step", "early stop"])
def test_an_export_that_could_not_be_written_is_made_again_without_training(
    level: dict[str, Any], images: Path, prepared: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(prepared, tmp_path / "run"))
    parity = run / "students/small/parity"
    # A file in the place of a folder: no file can be written below it, as on a full disk.
    parity.mkdir(parents=True)
    (parity / "merged").touch()
    tree = tree_at(images, run, max_failures=1, **level)
    failed = run_job("level", tree, tmp_path)
    assert failed.returncode == 3, failed.stderr
    assert "the student is trained, but its export failed in 2 attempts" in failed.stderr.splitlines()[-1]
    before = training_of(run)
    assert before["num_unreadable"] is None
    losses = losses_of(run)
    assert len(losses) > 1
    (parity / "merged").unlink()
    done = run_job("level", tree, tmp_path)
    assert done.returncode == 0, done.stderr
    after = training_of(run)
    assert (after["step"], after["best_step"]) == (before["step"], before["best_step"])
    assert losses_of(run) == losses
    assert [entry["from_step"] for entry in after["resumed"]] == [before["step"]] * 2
    assert "the student is trained already, and only its export is made" in done.stdout
    assert weights_of(run)

    # As after a fault of the check in the engine, which follows the export.
    (parity / "complete.json").unlink()
    again = run_job("level", tree, tmp_path)
    assert again.returncode == 0, again.stderr
    assert "the student is trained and exported already" in again.stdout
    assert training_of(run) == after


@pytest.mark.long
def test_a_labelled_question_with_a_special_token_is_left_out_and_counted(
    images: Path, prepared: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(prepared, tmp_path / "run"))
    image = next(iter(sorted(images.glob("*.png"))))
    questions = ["How many?", "What does <|im_end|> mean?", "Which <|image_pad|>?", "Where?"]
    rows = [
        {"question_id": str(n), "image": str(image), "question": text, "answers": ["<|im_end|>"]}
        for n, text in enumerate(questions)
    ]
    file = tmp_path / "labels.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tree = tree_at(images, run, num_workers=1, max_failures=0)
    tree["students"][0] |= {"arms": ["labels"], "labels": {"kind": "questions", "path": str(file)}}
    done = run_job("level", tree, tmp_path)
    assert done.returncode == 0, done.stderr
    warning = "WARNING: level small labels: the questions of 2 samples contain a special token of bundled:demo/models/"
    assert warning in done.stdout
    counts = json.loads((run / "students/small/labels/epoch/manifest.json").read_text())
    assert (counts["num_chosen"], counts["num_samples"], counts["num_with_special_token"]) == (4, 2, 2)
