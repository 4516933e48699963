"""The jobs as commands: killed, repeated, changed, and with wrong settings."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import yaml

from mpa_ray.cli import main
from mpa_ray.config import RunConfig, resolve_path
from mpa_ray.phases.context import RunContext
from mpa_ray.phases.index import index
from mpa_ray.run.logs import deaths
from mpa_ray.run.run import Run
from tests.conftest import scripted_tree, served, write_images

ROOT = Path(__file__).parents[2]
STUDENT = "bundled:demo/models/student"


@pytest.fixture
def tree(images: Path, tmp_path: Path) -> dict[str, Any]:
    return scripted_tree(images, tmp_path / "run", latency_s=0.5)


def command(job: str, tree: dict[str, Any], tmp_path: Path, *overrides: str) -> list[str]:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(tree))
    return [sys.executable, f"jobs/{job}.py", "--config", str(path), *overrides]


def run_job(job: str, tree: dict[str, Any], tmp_path: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(job, tree, tmp_path, *overrides), cwd=ROOT, capture_output=True, text=True, check=False, timeout=200
    )


def run_index(tree: dict[str, Any]) -> None:
    """Do the work of the job `index` in this process, which saves the start of another one."""
    index(RunContext.open(RunConfig.model_validate(tree)))


def run_here(
    capsys: pytest.CaptureFixture[str], job: str, tree: dict[str, Any], tmp_path: Path, *overrides: str
) -> subprocess.CompletedProcess[str]:
    """Run a job's command in this process."""
    capsys.readouterr()
    _, __, *words = command(job, tree, tmp_path, *overrides)
    code = main([job, *words])
    return subprocess.CompletedProcess(words, code, *capsys.readouterr())


def run_audit(tree: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "jobs/audit.py", tree["run_dir"]], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.returncode, json.loads(done.stdout)


def kill_when(job: str, tree: dict[str, Any], tmp_path: Path, reached: Callable[[], bool]) -> None:
    """Start a job, and kill its driver with SIGKILL once `reached` is true."""
    with subprocess.Popen(
        command(job, tree, tmp_path), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as driver:
        deadline = time.monotonic() + 120
        while not reached():
            assert driver.poll() is None, "the job ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.kill(driver.pid, signal.SIGKILL)


def kill_once(job: str, tree: dict[str, Any], tmp_path: Path, commits: Path) -> int:
    """Kill a job once a shard is committed; returns how many shards are."""
    kill_when(job, tree, tmp_path, lambda: any(commits.glob("*.json")))
    return len(list(commits.glob("*.json")))


@pytest.mark.long
def test_a_killed_job_continues_when_it_is_repeated(tree: dict[str, Any], tmp_path: Path) -> None:
    run = Path(tree["run_dir"])
    # Few images at a time, so that there is work left at the kill.
    tree["teacher"]["max_images_in_flight"] = tree["students"][0]["max_images_in_flight"] = 2
    assert run_job("index", tree, tmp_path).returncode == 0
    num_shards = 8
    assert kill_once("annotate", tree, tmp_path, run / "annotations/commits") < num_shards
    code, counts = run_audit(tree)
    assert code == 1
    assert any("is missing" in problem for problem in counts["problems"])
    assert run_job("annotate", tree, tmp_path).returncode == 0
    tree["students"][0]["engine"]["latency_s"] = 0.5
    assert kill_once("identify", tree, tmp_path, run / "verdicts/small/commits") < num_shards
    assert run_job("identify", tree, tmp_path).returncode == 0
    code, counts = run_audit(tree)
    assert (code, counts["images"], counts["problems"]) == (0, 60, [])

    again = run_job("annotate", tree, tmp_path)
    assert again.stdout.splitlines() == ["annotate: already done"]

    changed = run_job("annotate", tree, tmp_path, "--task", "text_vqa")
    assert changed.returncode == 2
    assert "annotation_prompt: was" in changed.stderr
    assert "Undo the change, or give a new run_dir." in changed.stderr


def test_a_killed_job_loses_nothing_of_what_is_known_of_images_that_kill_engines(tmp_path: Path) -> None:
    """The job succeeds, with a warning, and starts fewer engines than a job that starts from the beginning."""
    poison = ["007.png", "008.png"]
    tree = scripted_tree(write_images(tmp_path / "images", 32), tmp_path / "run", kill_on=poison)
    tree["source"] |= {"shard_size": 32, "skip_duplicates": False}
    run = Run.open(tree["run_dir"])
    run_index(tree)
    file = run.annotations.suspects_file("000000", 0)
    kill_when("annotate", tree, tmp_path, lambda: 2 in file.read().num_kills.values())
    known = file.read()
    assert {name for name, number in known.num_kills.items() if number == 2} < set(poison)

    done = run_job("annotate", tree, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "WARNING: annotate:teacher: 2 images killed engines and failed with reason kills_engine (" in done.stdout
    assert "of 32 rows, 6.2% failed (kills_engine: 2)" in done.stdout
    rows = {row.image_id: row.reason for row in run.annotations.rows(["000000"])}
    assert [name for name, reason in rows.items() if reason == "kills_engine"] == poison
    assert run.annotations.list_suspects() == set()
    # One search needs 9 engines at most, and 4 have died at the kill; the death that the killed driver did not record
    # is repeated.
    assert deaths(run.storage).total <= 10


def test_a_stopped_job_exits_in_order_and_logs_json(tree: dict[str, Any], tmp_path: Path) -> None:
    """`ray job stop` and schedulers send SIGTERM first."""
    tree["teacher"]["max_images_in_flight"] = 2
    run_index(tree)
    run, environment = Path(tree["run_dir"]), {**os.environ, "RAY_LOGGING_CONFIG_ENCODING": "JSON"}
    log = tmp_path / "log"
    with (
        log.open("w") as out,
        subprocess.Popen(command("annotate", tree, tmp_path), cwd=ROOT, env=environment, stdout=out, stderr=out) as job,
    ):
        deadline = time.monotonic() + 120
        while "shard committed" not in log.read_text():
            assert job.poll() is None, "the job ended before it could be stopped"
            assert time.monotonic() < deadline
            time.sleep(0.05)
        job.terminate()
        assert job.wait(60) == 130
    output = log.read_text()
    assert "Interrupted: run the same command again to continue." in output.splitlines()
    assert "Traceback" not in output
    assert json.loads((run / "phases/annotate.json").read_text())["num_attempts"] == 1

    records = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    names = {"run": tree["run_dir"], "phase": "annotate"}
    committed = [record for record in records if record["message"] == "shard committed"]
    assert {record["shard"] for record in committed} <= {path.stem for path in run.glob("annotations/commits/*.json")}
    assert committed[0].items() >= {**names, "levelname": "INFO", "num_images": 8}.items()
    assert next(record["message"] for record in records if record.items() >= names.items()) == "begins"


def leveling_tree(images: Path, run_dir: Path) -> dict[str, Any]:
    """A real student to train on the pairs that scripted engines keep: all 60 images."""
    tree = scripted_tree(images, run_dir)
    tree["students"][0] |= {
        "model": STUDENT,
        "engine": {"kind": "scripted", "wrong_rate": 1.0},
        "min_pixels": 3136,
        "max_pixels": 12544,
        "level": {"batch_size": 4, "checkpoint_every_steps": 2, "learning_rate": 1.0e-3},
    }
    return tree


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return math.sqrt(sum((one[key] - other[key]).square().sum().item() for key in one))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("--no_such_key", "1"), "no_such_key = 1: is not a setting."),
        (("--teacher.num_replicas", "0"), "teacher.num_replicas = 0:"),
        (("--teacher", "{{model: ./no/such/model}}"), "teacher.model = './no/such/model': is not a folder."),
        (("--source.path", "/no/such"), "source.path = '/no/such': does not exist."),
        (("--source.path", "{empty}"), "source.path = '{empty}': holds no images"),
        (("--students", "[{{model: {bare}}}]"), "students.0.model = '{bare}': has no processor"),
    ],
)
def test_a_wrong_setting_ends_the_job_with_one_message(
    tree: dict[str, Any],
    tmp_path: Path,
    overrides: tuple[str, str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {"empty": tmp_path / "empty", "bare": tmp_path / "bare"}
    places["empty"].mkdir()
    shutil.copytree(resolve_path(STUDENT), places["bare"], ignore=shutil.ignore_patterns("*processor*"))
    words = (overrides[0], overrides[1].format(**places))
    # One case in a separate process shows that no library prints anything at its start and at its end.
    is_separate = "{bare}" in overrides[1]
    done = (
        run_job("align", tree, tmp_path, *words) if is_separate else run_here(capsys, "align", tree, tmp_path, *words)
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(f"ConfigError: {message.format(**places)}")
    assert len(done.stderr.splitlines()) == 1


def test_a_phase_that_is_too_early_names_the_job_to_run_first(
    tree: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = run_here(capsys, "annotate", tree, tmp_path)
    assert done.returncode == 2
    assert "Run mpa-ray index first." in done.stderr


STARTED_BY_A_THREAD = """
import threading, time, ray
from mpa_ray.pipeline.cluster import start_ray
thread = threading.Thread(target=start_ray)
thread.start()
thread.join()
time.sleep(3)
print("answer", ray.get(ray.remote(lambda: 42).remote(), timeout=60))
"""


def test_ray_survives_the_thread_that_started_it() -> None:
    """In a campaign, the teacher's thread ends long before those of the students."""
    done = subprocess.run(
        [sys.executable, "-c", STARTED_BY_A_THREAD], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )
    assert "answer 42" in done.stdout, done.stderr


SECRET = "Zq8xW2kP7vN4tR6y"
"""It is part of every planted secret, each of which ends with a different number."""
PHASES = """
import sys
from mpa_ray.cli import main
file, file_for_evaluation, *words = sys.argv[1:]
codes = [main([phase, "--config", file, *words]) for phase in ("index", "annotate", "identify")]
codes += [main(["evaluate", "--config", file_for_evaluation]), main(["report", "--config", file, *words])]
print(codes)
"""


def test_no_secret_reaches_a_file_a_log_or_the_terminal(images: Path, tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as ray_folder, served(images) as site:
        tree = with_secrets(images, tmp_path, site)
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree))
        # The second student's engine cannot start. One attempt is enough.
        (tmp_path / "evaluation.yaml").write_text(yaml.safe_dump(tree | {"students": tree["students"][:1]}))
        done = subprocess.run(
            [
                *[sys.executable, "-c", PHASES, str(tmp_path / "config.yaml"), str(tmp_path / "evaluation.yaml")],
                *["--students.1.engine.engine_args.hf_token", f"{SECRET}1"],
            ],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=280,
            env={
                **os.environ,
                "RAY_TMPDIR": ray_folder,
                "AWS_SECRET_ACCESS_KEY": f"{SECRET}2",
                "AWS_SESSION_TOKEN": f"{SECRET}3",
                "HF_TOKEN": f"{SECRET}4",
            },
        )
        assert done.stdout.splitlines()[-1] == "[0, 0, 1, 0, 0]", done.stderr
        assert "the engine of" in done.stderr
        assert SECRET not in done.stdout + done.stderr
        leaks = [path for path in files_below(Path(ray_folder)) if SECRET.encode() in path.read_bytes()]
        assert not leaks
        assert any(b"ray" in path.read_bytes() for path in files_below(Path(ray_folder)))
    run = Path(tree["run_dir"])
    rows = {path: pq.read_table(path) for path in files_below(run) if path.suffix == ".parquet"}
    assert len(rows) > 4
    for path in files_below(run):
        if path not in rows and path.parent.name != "small":
            assert SECRET.encode() not in path.read_bytes(), path
    # `source.allow: [signed_urls]` permits one column to hold them.
    columns = {name for table in rows.values() for name in table.column_names if SECRET in str(table[name].to_pylist())}
    assert columns == {"uri"}
    assert '"hf_token": "***"' in (run / "run.json").read_text()
    annotations = [row for path, table in rows.items() if "annotations" in str(path) for row in table.to_pylist()]
    signed = {(row["state"], row["reason"]) for row in annotations if "127.0.0.1" in row["uri"]}
    assert signed == {("kept", None), ("failed", "unreadable")}
    assert {json.loads(row["metadata"])["url"] for row in annotations} == {"https://***@host/x?sig=***&w=1"}


def with_secrets(images: Path, tmp_path: Path, site: str) -> dict[str, Any]:
    """A configuration with a secret wherever a run may need one; the one that a student's engine needs comes later."""
    signed = [f"{site}/{name}?X-Amz-Signature={SECRET}5" for name in ("010.png", "none.png")]
    entries = [*sorted(map(str, images.glob("00*.png"))), *signed]
    url = f"https://me:{SECRET}6@host/x?sig={SECRET}7&w=1"
    source = tmp_path / "list.jsonl"
    source.write_text("\n".join(json.dumps({"image": entry, "url": url}) for entry in entries))
    questions = tmp_path / "questions.jsonl"
    question = {"question_id": "1", "image": entries[0], "question": "What is it?", "answers": ["x"]}
    questions.write_text(json.dumps(question))
    tree = scripted_tree(images, tmp_path / "my run #1 [50%]?")
    tree["source"] = {"path": str(source), "metadata": ["url"], "allow": ["http", "signed_urls"], "shard_size": 8}
    tree["object_store"] = {"max_attempts": 1}
    tree["evaluate"] = {"benchmarks": [{"path": str(questions), "images": str(images)}], "teacher": True}
    arguments = {"quantization": "no_such_method", "additional_config": {"api_key": f"{SECRET}8", "url": url}}
    engine = {"kind": "vllm", "engine_args": arguments}
    tree["students"].append({"name": "broken", "model": STUDENT, "engine": engine})
    return tree


def files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
