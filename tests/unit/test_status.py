"""How far a run has come, from its files."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Generator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from mpa_ray.config import RunConfig
from mpa_ray.errors import AccessLost, ConfigError, RunError
from mpa_ray.observability.worker_process import WorkerProcess
from mpa_ray.pipeline.run_pass import record_error, recorded
from mpa_ray.records import Annotation, ImageRef, Verdict
from mpa_ray.report.phase_status import PhaseStatus
from mpa_ray.report.render_status import render_status
from mpa_ray.report.status import status
from mpa_ray.run.commands import command_recorded
from mpa_ray.run.garbage import collect_garbage
from mpa_ray.run.logs import record_lost_process
from mpa_ray.run.phase_record import PhaseKey, PhaseRecord, add_to_record
from mpa_ray.run.run import Run
from mpa_ray.storage.open import open_storage
from tests.s3_server import CREDENTIALS, s3_server

ROOT = Path(__file__).parents[2]
BEGAN = datetime(2026, 1, 1, tzinfo=UTC)


def begun(root: str, num_annotated: int = 2, students: tuple[str, ...] = ("small", "other"), **more: Any) -> Run:
    """A run of 3 shards with 2, 2 and 1 images, the first of them annotated."""
    run = Run(open_storage(root))
    models = [{"name": name, "model": name} for name in students]
    config = RunConfig.model_validate(
        {"run_dir": root, "source": {"path": "/images"}, "teacher": {"model": "t"}, "students": models, **more}
    )
    run.record_config(config, {})
    refs = [ImageRef(f"{i}.png", f"/images/{i}.png", 10) for i in range(5)]
    for number, shard in enumerate((refs[:2], refs[2:4], refs[4:])):
        run.corpus.commit(f"{number:06d}", shard)
    run.write_json("corpus/manifest.json", {"num_images": 5, "num_shards": 3})
    for shard in run.manifest().shards[:num_annotated]:
        # Two questions on each image: more rows than images.
        rows = [
            Annotation(f"{r.image_id}#{q}", r.image_id, r.uri, "kept") for r in run.corpus.read(shard) for q in (0, 1)
        ]
        run.annotations.commit(shard, [*rows[:-1], replace(rows[-1], state="failed", reason="no_question")])
    return run


def phase(run: Run, name: str, **settings: Any) -> PhaseStatus:
    return next(row for row in status(run, **settings).phases if row.name == name)


def at(run: Run, path: str, minutes: int) -> None:
    """Date a file, so many minutes after the run began."""
    moment = (BEGAN + timedelta(minutes=minutes)).timestamp()
    os.utime(Path(run.storage.root, path), (moment, moment))


def train(run: Run, student: str, step: int, done: bool = False) -> None:
    log = [{"loss": 0.9, "samples_per_s": 1.0, "step": 1}, {"loss": 0.25, "samples_per_s": 8.0, "step": step}]
    run.write_json(f"students/{student}/parity/training.json", {"step": step, "num_steps": 10, "log": log})
    if done:
        run.storage.create(f"students/{student}/parity/complete.json", b"{}")


def test_images_are_counted_by_the_corpus_not_by_rows(tmp_path: Path) -> None:
    run = begun(str(tmp_path))
    annotate = phase(run, "annotate")
    assert (annotate.state, annotate.num_done, annotate.num_total) == ("begun", 4, 5)
    assert (annotate.num_shards_done, annotate.num_shards) == (2, 3)
    assert annotate.counts is None
    assert phase(run, "annotate", count_rows=True).counts == {"kept": 6, "no_question": 2}
    assert phase(run, "identify small").state == "not begun"
    assert status(run).command == "mpa-ray annotate --config FILE"


def test_without_a_manifest_indexing_is_not_done(tmp_path: Path) -> None:
    run = begun(str(tmp_path), num_annotated=1)
    run.storage.delete("corpus/manifest.json")
    assert (phase(run, "index").state, phase(run, "index").num_done) == ("begun", 5)
    assert (phase(run, "annotate").state, phase(run, "annotate").num_total) == ("begun", None)


def test_identification_is_done_once_its_parity_samples_are_exported(tmp_path: Path) -> None:
    run = begun(str(tmp_path), num_annotated=3)
    for shard in run.manifest().shards:
        run.verdicts("small").commit(shard, [Verdict("a#0", "a", "/a", "kept")])
    assert phase(run, "identify small").state == "begun"
    run.write_json("parity/small/manifest.json", {"num_samples": 3})
    identify = phase(run, "identify small", count_rows=True)
    assert (identify.state, identify.note, identify.counts) == ("done", "3 parity samples", {"kept": 3})


def test_an_identification_that_failed_although_all_shards_are_committed_keeps_its_error(tmp_path: Path) -> None:
    run = begun(str(tmp_path), num_annotated=3)
    for shard in run.manifest().shards:
        run.verdicts("small").commit(shard, [Verdict("a#0", "a", "/a", "failed", "request_failed")])
    add_to_record(run, PhaseKey("identify", "small"), PhaseRecord(1.0, 1, error="3 of 3 images failed."))
    identify = phase(run, "identify small")
    assert (identify.state, identify.error) == ("begun", "3 of 3 images failed.")


def test_finished_and_unfinished_students_are_listed_apart(tmp_path: Path) -> None:
    run = begun(str(tmp_path))
    train(run, "small", 10, done=True)
    train(run, "other", 4)
    run.write_json("phases/level.other.json", {"wall_s": 60.0, "num_attempts": 1})
    at(run, "students/other/parity/training.json", 5)
    at(run, "phases/level.other.json", 6)
    current = status(run, now=BEGAN + timedelta(minutes=10))
    assert (current.finished, current.unfinished) == (["small"], ["other"])
    other = next(row for row in current.phases if row.key == PhaseKey("level", "other"))
    assert (other.num_done, other.num_total, other.per_s, other.note) == (4, 10, 8.0, "loss 0.25")
    assert other.attempt_ended == BEGAN + timedelta(minutes=6)
    assert "the last attempt ended 4:00 ago without finishing" in render_status(current)
    # Another attempt has written since.
    at(run, "students/other/parity/training.json", 7)
    assert phase(run, "level other").attempt_ended is None


def test_a_trained_student_is_done_once_it_is_checked(tmp_path: Path) -> None:
    run = begun(str(tmp_path))
    train(run, "small", 10)
    run.write_json("phases/level.small.json", {"wall_s": 60.0, "num_attempts": 1})
    level = phase(run, "level small")
    assert (level.state, level.attempt_ended) == ("begun", None)
    assert level.note == "loss 0.25, trained, not checked in the engine yet"


def test_a_training_without_a_logged_loss_has_no_empty_part_in_its_line(tmp_path: Path) -> None:
    run = begun(str(tmp_path))
    run.write_json("students/small/parity/training.json", {"step": 1, "num_steps": 1, "log": []})
    assert phase(run, "level small").note == "trained, not checked in the engine yet"
    assert "1 of 1 steps, trained, not checked in the engine yet" in render_status(status(run))


def test_an_arm_is_named_with_its_student(tmp_path: Path) -> None:
    run = begun(str(tmp_path), students=("small",))
    tree = run.read_json("run.json")
    tree["config"]["students"][0]["arms"] = ["parity", "all"]
    run.write_json("run.json", tree)
    run.storage.create("students/small/all/complete.json", b"{}")
    current = status(run)
    assert current.finished == ["small all"]
    assert [row.key for row in current.phases if row.state == "done"] == [
        PhaseKey("index"),
        PhaseKey("level", "small", "all"),
    ]


def test_the_record_for_programs_has_a_row_for_each_phase(tmp_path: Path) -> None:
    run = begun(str(tmp_path))
    train(run, "small", 10, done=True)
    record = json.loads(json.dumps(status(run, now=BEGAN).to_json()))
    general = {"run_dir", "at", "is_done", "left", "students", "continue_with", "commands", "phases", "deaths"}
    assert record.keys() == general
    assert record["students"] == {"leveled": ["small"], "begun": []}
    assert [row["name"] for row in record["phases"]] == [
        "index",
        "annotate",
        "identify small",
        "identify other",
        "level small",
        "level other",
        "report",
    ]
    assert record["phases"][4].keys() == {
        "name",
        "state",
        "command",
        "num_shards_done",
        "num_shards",
        "num_done",
        "num_total",
        "unit",
        "per_s",
        "num_attempts",
        "last_sign",
        "attempt_ended",
        "counts",
        "note",
        "error",
    }


def test_a_pass_that_ended_before_its_first_shard_is_begun(tmp_path: Path) -> None:
    run = begun(str(tmp_path), num_annotated=0)
    run.write_json("phases/annotate.json", {"wall_s": 30.0, "num_attempts": 2, "num_images": 0, "working_s": 0.0})
    annotate = phase(run, "annotate")
    assert (annotate.state, annotate.num_attempts, annotate.per_s) == ("begun", 2, None)
    assert annotate.attempt_ended is not None


def test_rates_are_those_of_engines_at_work(tmp_path: Path) -> None:
    run = begun(str(tmp_path))
    run.write_json("phases/annotate.json", {"wall_s": 50.0, "num_attempts": 1, "num_images": 4, "working_s": 8.0})
    assert phase(run, "annotate").per_s == 0.5


def test_benchmarks_are_listed_by_model(tmp_path: Path) -> None:
    benchmarks = {
        "benchmarks": [{"path": "q.jsonl", "name": "heldout"}],
        "teacher": False,
        "models": [{"name": "rival", "model": "other/vlm"}],
    }
    run = begun(str(tmp_path), students=("small",), evaluate=benchmarks)
    run.write_json("evaluation/heldout/manifest.json", {"num_images": 2, "num_shards": 1})
    run.predictions("heldout", "rival").commit("000000", [])
    states = {row.name: row.state for row in status(run).phases if row.key.kind == "evaluate"}
    assert states == {
        "evaluate small.before on heldout": "not begun",
        "evaluate small.after on heldout": "not begun",
        "evaluate rival on heldout": "done",
    }


def test_a_directory_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"run_dir.*has no run\.json"):
        status(Run(open_storage(str(tmp_path))))


def run_status_job(*arguments: str) -> subprocess.CompletedProcess[str]:
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['status.py', *{arguments!r}]\n"
        "try:\n"
        "    runpy.run_path('jobs/status.py', run_name='__main__')\n"
        "finally:\n"
        "    heavy = {'torch', 'ray', 'vllm', 'transformers'} & set(sys.modules)\n"
        "    assert not heavy, heavy\n"
    )
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_job_needs_neither_ray_nor_torch(tmp_path: Path) -> None:
    begun(str(tmp_path))
    text, record = run_status_job(str(tmp_path)), run_status_job(str(tmp_path), "--json")
    assert (text.returncode, record.returncode) == (0, 0), text.stderr + record.stderr
    assert "4 of 5 images, 2 of 3 shards" in text.stdout
    assert json.loads(record.stdout)["left"][0] == "annotate"
    assert run_status_job(str(tmp_path), "--object_store.nowhere", "1").returncode == 2


def test_a_run_at_another_endpoint_is_found() -> None:
    with pytest.MonkeyPatch.context() as patch, s3_server() as endpoint:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        patch.setenv("AWS_ENDPOINT_URL", endpoint)
        begun("s3://bucket/status")
        patch.delenv("AWS_ENDPOINT_URL")
        done = run_status_job("s3://bucket/status", "--object_store.endpoint_url", endpoint)
    assert done.returncode == 0, done.stderr
    assert "4 of 5 images, 2 of 3 shards" in done.stdout


def test_a_failed_attempt_is_explained_until_something_else_is_written(tmp_path: Path) -> None:
    run = begun(str(tmp_path))
    error = "annotate:teacher: the engine died 2 times: CUDA out of memory"
    add_to_record(run, PhaseKey("annotate"), PhaseRecord(50.0, 1, error=error))
    at(run, "annotations/commits/000000.json", 1)
    at(run, "annotations/commits/000001.json", 1)
    at(run, "phases/annotate.json", 2)
    assert phase(run, "annotate").error == error
    assert f"  {error}" in render_status(status(run)).splitlines()
    assert status(run).to_json()["phases"][1]["error"] == error
    # The last shard of the attempt was committed later.
    at(run, "annotations/commits/000001.json", 3)
    assert phase(run, "annotate").error == error
    assert phase(run, "annotate").attempt_ended is not None
    with recorded(run, PhaseKey("annotate")):
        assert phase(run, "annotate").error == ""
        assert phase(run, "annotate").attempt_ended is None
    assert phase(run, "annotate").error == ""


def test_a_phase_that_could_not_begin_is_not_begun_and_has_its_error(tmp_path: Path) -> None:
    run = begun(str(tmp_path))
    record_error(run, PhaseKey("identify", "small"), ConfigError("students.0.model", "x", "is no folder.", "Fix it."))
    identify = phase(run, "identify small")
    assert (identify.state, identify.attempt_ended) == ("not begun", None)
    assert identify.error == "students.0.model = 'x': is no folder. Fix it."
    add_to_record(run, PhaseKey("identify", "small"), PhaseRecord(1.0, 1))
    assert phase(run, "identify small").error == ""


def test_deaths_are_counted_and_the_latest_are_shown(tmp_path: Path) -> None:
    run = begun(str(tmp_path / "run"))
    process = WorkerProcess("engine of teacher", 7, "node", "", (), None)
    for number in range(7):
        record_lost_process(run.storage, PhaseKey("annotate"), process, f"cause {number}")
    text = render_status(status(run))
    assert f"processes that died: 7 (annotate: 7); their logs are in {run.storage.root}/logs. The latest:" in text
    assert text.count("the engine of teacher (process 7 on node): cause") == 5
    assert "cause 6" in text
    assert status(run).to_json()["deaths"]["total"] == 7


def test_a_generator_that_is_closed_late_keeps_the_error_that_closed_it(tmp_path: Path) -> None:
    run = begun(str(tmp_path))
    key = PhaseKey("identify", "small")

    def shards() -> Generator[int]:
        with recorded(run, key):
            yield 1

    unclosed = shards()
    next(unclosed)
    record_error(run, key, RunError("3 of 8 images failed."))
    unclosed.close()
    assert phase(run, "identify small").error == "3 of 8 images failed."


def test_a_running_command_is_shown_until_it_ends(tmp_path: Path) -> None:
    run = begun(str(tmp_path))
    here = f"running: mpa-ray align on {socket.gethostname()} (process {os.getpid()}), begun 0:0"
    with command_recorded(run.storage, "mpa-ray align"):
        text = render_status(status(run))
        assert here in text
        assert "if no command runs any more, continue with: mpa-ray" in text
        (command,) = json.loads(json.dumps(status(run).to_json()))["commands"]
        assert (command["name"], command["pid"]) == ("mpa-ray align", os.getpid())
        with command_recorded(run.storage, "mpa-ray identify"):
            assert [command.name for command in status(run).commands] == ["mpa-ray align", "mpa-ray identify"]
    text = render_status(status(run))
    assert "running: " not in text
    assert "\ncontinue with: mpa-ray" in text


@pytest.mark.parametrize(
    "lost",
    [
        AccessLost("ExpiredToken"),
        ConfigError("object_store", "s3://b/k", "cannot be accessed.", "Set credentials."),
        OSError("gone"),
    ],
)
def test_a_storage_that_is_lost_does_not_hide_how_a_command_ended(
    lost: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = begun(str(tmp_path)).storage

    def fail(*_: object) -> None:
        raise lost

    monkeypatch.setattr(storage, "delete", fail)
    with command_recorded(storage, "mpa-ray align"):
        pass
    with pytest.raises(RunError, match="of its own"), command_recorded(storage, "mpa-ray align"):
        raise RunError("an error of its own")


def test_a_killed_command_of_this_machine_is_not_shown(tmp_path: Path) -> None:
    run = begun(str(tmp_path))
    code = (
        "import os, sys; from mpa_ray.run.commands import command_recorded\n"
        "from mpa_ray.storage.open import open_storage\n"
        "with command_recorded(open_storage(sys.argv[1]), 'mpa-ray align'):\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, check=False)
    assert done.returncode == -9
    (left,) = (tmp_path / "commands").iterdir()
    assert status(run).commands == []
    # The next command removes the file.
    with command_recorded(run.storage, "mpa-ray align"):
        assert not left.exists()


def test_a_command_of_another_machine_is_shown_and_damaged_files_are_not(tmp_path: Path) -> None:
    run = begun(str(tmp_path))
    process = {"number": 0, "host": "node-b", "pid": 4711, "process": "another-boot/1/4711/5", "token": "t"}
    content = {"name": "mpa-ray align", "begun": "2026-01-01T10:00:00+00:00", "process": process}
    run.storage.write("commands/a.json", json.dumps(content).encode())
    run.storage.write("commands/b.json", b"{")
    text = render_status(status(run, now=datetime(2026, 1, 1, 12, 30, tzinfo=UTC)))
    assert "running: mpa-ray align on node-b (process 4711), begun 2 h 30 min ago" in text

    # A command that was killed there is shown until its file is collected.
    assert collect_garbage(run, timedelta(hours=1)).num_files == 0
    assert collect_garbage(run, timedelta(seconds=-5)).num_files == 2
    assert "running: " not in render_status(status(run))
