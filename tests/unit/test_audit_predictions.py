"""The audit of a run that only measures models recounts their answers, and needs no index."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import pytest

from mpa_ray.errors import ConfigError
from mpa_ray.records import LabelledQuestion, Prediction
from mpa_ray.run.audit import audit
from mpa_ray.run.garbage import Collected, collect_garbage
from mpa_ray.run.run import Run

QUESTIONS = [LabelledQuestion(f"q{n}", f"{n}.png", f"/{n}.png", "?", ["a"], "all") for n in range(5)]
SHARDS = {"000000": QUESTIONS[:3], "000001": QUESTIONS[3:]}


def prediction(question: LabelledQuestion, state: str = "kept", reason: str | None = None) -> Prediction:
    return Prediction(
        question.question_id, question.image_id, question.uri, "?", ["a"], "all", state=state, reason=reason
    )


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run that measured one of its two models on a benchmark."""
    run = Run.open(str(tmp_path / "run"))
    benchmarks = [{"name": "set", "kind": "questions"}]
    config = {"evaluate": {"benchmarks": benchmarks, "models": [{"name": "one"}, {"name": "two"}]}}
    run.write_json("run.json", {"config": config})
    run.write_json("evaluation/set/manifest.json", {"num_images": 5, "num_shards": 2})
    for shard, questions in SHARDS.items():
        run.questions("set").commit(shard, questions)
        rows = [prediction(question) for question in questions]
        run.predictions("set", "one").commit(shard, rows)
        run.predictions("set", "two").commit(shard, [prediction(questions[0], "failed", "unreadable"), *rows[1:]])
    return run


def test_the_answers_are_counted(run: Run) -> None:
    counts = audit(run).to_json()
    assert (counts["images"], counts["problems"]) == (0, [])
    assert counts["predictions"] == {
        "set": {"one": {"questions": 5, "kept": 5}, "two": {"questions": 5, "kept": 3, "unreadable": 2}}
    }
    assert collect_garbage(run, timedelta(seconds=-5)) == Collected(0, 0, 0)


def test_missing_doubled_and_damaged_answers_are_problems(run: Run) -> None:
    root = Path(run.storage.root, "evaluation/set/predictions")
    (root / "one/commits/000001.json").unlink()
    run.predictions("set", "one").commit("000001", [prediction(QUESTIONS[3])] * 2)
    next((root / "two/data").glob("000000-*")).write_bytes(b"PAR1")
    (root / "two/commits/000001.json").unlink()
    problems = "\n".join(audit(run).problems)
    assert "predictions/one shard 000001: questions missing: q4" in problems
    assert "predictions/one shard 000001: questions too many: q3" in problems
    assert "predictions/two: shard 000000 cannot be read" in problems
    assert "predictions/two: shard 000001 is missing" in problems


def test_a_benchmark_that_was_not_read_is_a_problem(run: Run) -> None:
    Path(run.storage.root, "evaluation/set/manifest.json").unlink()
    assert audit(run).problems == ["evaluation/set: the questions have not been read yet"]


def test_a_run_with_students_needs_its_index(run: Run) -> None:
    config = json.loads(run.storage.read("run.json"))["config"]
    run.write_json("run.json", {"config": {**config, "students": [{"name": "small"}], "source": {}}})
    with pytest.raises(ConfigError, match="Run mpa-ray index first"):
        audit(run)


def test_students_that_were_not_measured_yet_are_no_problem(run: Run) -> None:
    config = json.loads(run.storage.read("run.json"))["config"]
    run.write_json("run.json", {"config": {**config, "students": [{"name": "small"}]}})
    run.write_json("corpus/manifest.json", {"num_images": 0, "num_shards": 0, "left_out": {".heic": 3}})
    counts = audit(run)
    assert [problem for problem in counts.problems if "evaluation" in problem] == []
    assert list(counts.predictions["set"]) == ["one", "two"]
    assert counts.to_json()["left_out_files"] == {".heic": 3}
