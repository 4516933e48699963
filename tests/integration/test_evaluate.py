"""Several benchmarks and models in one evaluation, and verdicts judged by another matcher, with scripted engines."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from mpa_ray.config import EvaluationRunConfig, RunConfig
from mpa_ray.engine.scripted import _digest
from mpa_ray.errors import ConfigError, FingerprintMismatch, RunError
from mpa_ray.imaging.prepare import PreparedImage, prepare
from mpa_ray.phases.annotate import annotate, index_and_annotate
from mpa_ray.phases.context import RunContext
from mpa_ray.phases.evaluate import evaluate, prepare_benchmarks
from mpa_ray.phases.identify import identify
from mpa_ray.phases.index import index
from mpa_ray.phases.report import report
from mpa_ray.records import ParitySample
from mpa_ray.run.audit import audit
from mpa_ray.run.parity_export import read_parity
from mpa_ray.run.parquet_rows import iter_parquet
from mpa_ray.run.run import Run
from tests.conftest import scripted_tree
from tests.integration.test_jobs import run_here, run_job

pytestmark = pytest.mark.usefixtures("local_ray")

STEADY = {"model": "scripted", "engine": {"kind": "scripted"}}
WRONG = {"model": "scripted", "engine": {"kind": "scripted", "wrong_rate": 0.5}}


def code_of(image: Path) -> str:
    prepared = prepare(image.read_bytes(), 1, 10**6)
    assert isinstance(prepared, PreparedImage)
    return _digest(prepared.key)


@pytest.fixture(scope="module")
def benchmarks(images: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """One of the user's own, three questions on each image, and one in TextVQA's format, one question on each."""
    folder = tmp_path_factory.mktemp("benchmarks")
    codes = {path: code_of(path) for path in sorted(images.glob("*.png"))[:20]}
    own = [
        {
            "question_id": f"{path.stem}-{n}",
            "image": path.name,
            "question": f"What is written on picture {code[:8]}?",
            "answers": [code[8:12]],
            "family": f"line {n}",
        }
        for path, code in codes.items()
        for n in range(3)
    ]
    textvqa = [
        {
            "question_id": n,
            "image_id": path.stem,
            "question": f"What is written on picture {code[:8]}?",
            "answers": [code[8:12]] * 10,
        }
        for n, (path, code) in enumerate(codes.items())
    ]
    (folder / "own.json").write_text(json.dumps(own))
    (folder / "TextVQA_0.5.1_val.json").write_text(json.dumps({"data": textvqa}))
    for path in codes:
        (folder / "train_images").mkdir(exist_ok=True)
        (folder / "train_images" / f"{path.stem}.jpg").write_bytes(path.read_bytes())
    return [
        {"name": "own", "path": str(folder / "own.json"), "images": str(images)},
        {"kind": "textvqa", "path": str(folder / "TextVQA_0.5.1_val.json")},
    ]


def alone(run_dir: Path, benchmarks: list[dict[str, str]]) -> dict[str, Any]:
    models = [{"name": "steady", **STEADY}, {"name": "wrong", **WRONG, "compared_to": "steady"}]
    return {
        "run_dir": str(run_dir),
        "task": "demo_world",
        "evaluate": {"benchmarks": benchmarks, "models": models, "shard_size": 6},
    }


def evaluated(tree: dict[str, Any]) -> dict[str, Any]:
    evaluate(RunContext.open(EvaluationRunConfig.model_validate(tree)))
    return Run.open(tree["run_dir"]).read_json("evaluation/scores.json")


def test_several_models_answer_several_benchmarks(
    benchmarks: list[dict[str, str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = alone(tmp_path / "run", benchmarks[:1])
    first = evaluated(tree)["own"]
    assert first["metric"]["name"] == "exact_match"
    steady, wrong = (first["models"][name]["groups"] for name in ("steady", "wrong"))
    assert steady["all"] == {"mean": 1.0, "low": 1.0, "high": 1.0, "num_questions": 60}
    assert {"all", "family: line 0", "family: line 1", "family: line 2", "answer type: single_word"} <= set(steady)
    assert 0.2 < wrong["all"]["mean"] < 0.8
    (pair,) = first["differences"]
    assert pair["groups"]["all"]["mean"] == pytest.approx(wrong["all"]["mean"] - 1)
    assert pair["groups"]["all"]["high"] < 0

    capsys.readouterr()
    # Another benchmark costs no more than its own answers.
    both = evaluated(alone(tmp_path / "run", benchmarks))
    output = capsys.readouterr().out
    assert "evaluate steady: 40 images, 20 already done" in output
    assert both["own"] == first
    assert both["textvqa"]["metric"]["name"] == "textvqa_m4c"
    assert both["textvqa"]["models"]["wrong"]["groups"]["all"]["mean"] == pytest.approx(wrong["all"]["mean"])
    assert "WARNING: wrong: " in output
    assert "predictions match no answer at all" in output

    evaluated(alone(tmp_path / "run", benchmarks))
    assert "evaluate steady: already done" in capsys.readouterr().out


def test_answers_are_scored_again_without_answering(
    benchmarks: list[dict[str, str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = alone(tmp_path / "run", benchmarks)
    too_early = run_here(capsys, "evaluate", tree, tmp_path, "--score-only")
    assert (too_early.returncode, "holds no run, so there is nothing to score" in too_early.stderr) == (2, True)
    assert not (tmp_path / "run").exists()
    evaluated(tree)
    again = run_job("evaluate", tree, tmp_path, "--score-only", "--evaluate.benchmarks.1.metric", "anls")
    assert again.returncode == 0, again.stderr
    assert "textvqa: anls, %" in again.stdout
    assert "evaluate steady" not in again.stdout
    scores = Run.open(tree["run_dir"]).read_json("evaluation/scores.json")
    assert scores["textvqa"]["metric"]["name"] == "anls"
    tree["evaluate"]["models"].append({"name": "new", **WRONG})
    partly = run_here(capsys, "evaluate", tree, tmp_path, "--score-only")
    assert "WARNING: new has not answered" in partly.stdout
    assert set(json.loads((tmp_path / "run/evaluation/scores.json").read_text())["own"]["models"]) == {
        "steady",
        "wrong",
    }


def test_an_evaluation_whose_images_mostly_fail_is_stopped(benchmarks: list[dict[str, str]], tmp_path: Path) -> None:
    failing = {"kind": "scripted", "fail_on": [f"{number:03d}.png" for number in range(12)]}
    tree = alone(tmp_path / "run", benchmarks[:1])
    tree["evaluate"]["models"] = [{"name": "failing", "model": "scripted", "engine": failing}]
    tree["limits"] = {"min_images": 20}
    with pytest.raises(RunError, match=r"^12 of 20 images failed, .*max_failed_rate = 0\.5 \(request_failed: 12\)"):
        evaluated(tree)
    run = Run.open(tree["run_dir"])
    rows = run.predictions("own", "failing").rows(run.manifest("evaluation/own").shards)
    assert Counter((row.state, row.reason, row.prediction is None) for row in rows) == {
        ("failed", "request_failed", True): 36,
        ("kept", None, False): 24,
    }


def test_answers_under_other_settings_are_not_mixed(benchmarks: list[dict[str, str]], tmp_path: Path) -> None:
    tree = alone(tmp_path / "run", benchmarks[:1])
    evaluated(tree)
    tree["evaluate"]["models"][1]["engine"] = {"kind": "scripted", "wrong_rate": 0.1}
    with pytest.raises(FingerprintMismatch, match=r"predictions/wrong.*wrong_rate: was 0.5, now 0.1.*another name"):
        evaluated(tree)


@pytest.mark.parametrize(
    ("models", "problem"),
    [
        ([], "evaluate.models = .*is empty, so there is no model"),
        (
            [{"name": "a", **STEADY, "compared_to": "b"}],
            "evaluate.models.0.compared_to = 'b': is not the name of a model",
        ),
        ([{"name": "a", "model": "/no/such"}], "evaluate.models.0.model = '/no/such'"),
    ],
)
def test_wrong_models_are_refused(
    models: list[Any], problem: str, benchmarks: list[dict[str, str]], tmp_path: Path
) -> None:
    tree = alone(tmp_path / "run", benchmarks[:1])
    tree["evaluate"]["models"] = models
    with pytest.raises(ConfigError, match=problem):
        evaluated(tree)


def test_a_run_measures_its_own_models_and_reports_them(
    images: Path, benchmarks: list[dict[str, str]], tmp_path: Path
) -> None:
    tree = scripted_tree(images, tmp_path / "run", inconsistent_rate=0.3)
    tree["evaluate"] = {"benchmarks": benchmarks, "models": [{"name": "other", **WRONG}]}
    config = RunConfig.model_validate(tree)
    for phase in (prepare_benchmarks, index_and_annotate, identify, evaluate, report):
        phase(RunContext.open(config))
    written = json.loads((tmp_path / "run/report/report.json").read_text())
    assert set(written["scores"]["own"]["models"]) == {"small.before", "teacher", "other"}
    assert {"identify small", "evaluate small.before", "evaluate teacher"} <= set(written["phases"])
    coverage = written["coverage"]
    assert sum(coverage["sets"]["benchmark own"].values()) == 60
    assert sum(coverage["sets"]["D_PI of small"].values()) == written["counts"]["kept"]["small"]
    assert sum(coverage["sets"]["D_PA"].values()) == written["counts"]["annotated"]
    assert 0 <= coverage["divergences"]["D_PI of small"]["D_PA"] < 0.2
    page = (tmp_path / "run/report/index.html").read_text()
    assert all(part in page for part in ("Types of answers", "benchmark textvqa", "textvqa_m4c", "single_word"))


def rematched(run: Run, matcher: str) -> list[str]:
    """The annotations in D_PI by another matcher."""
    content = run.storage.read(f"{run.rematch_dir('small', matcher)}/parity.parquet")
    return [sample.annotation_id for sample in iter_parquet(content, ParitySample)]


def test_another_matcher_needs_no_model(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree = scripted_tree(images, tmp_path / "run", inconsistent_rate=0.3)
    config = RunConfig.model_validate(tree)
    for phase in (index_and_annotate, identify):
        phase(RunContext.open(config))
    run = Run.open(tree["run_dir"])
    before = [sample.annotation_id for sample in read_parity(run, "small")]
    # A scripted model that is wrong says "not 1a2b", which contains the answer.
    done = run_job("identify", tree, tmp_path, "--rematch", "--identify.matcher", "containment")
    assert done.returncode == 0, done.stderr
    changes = run.read_json("parity/small/rematch/containment/changes.json")
    assert changes["parity_samples"] == {"before": len(before), "after": 0, "gained": 0, "lost": len(before)}
    assert changes["num_not_asked"] == changes["cells_before"]["teacher_no_student_not_asked"] > 0
    assert f"for {changes['num_not_asked']} pairs, the teacher's answers agree according to this matcher" in done.stdout
    assert rematched(run, "containment") == []
    assert run.read_json("parity/small/rematch/containment/manifest.json")["matcher"] == {"kind": "containment"}
    assert [sample.annotation_id for sample in read_parity(run, "small")] == before

    same = run_here(capsys, "identify", tree, tmp_path, "--rematch")
    assert same.returncode == 0
    assert rematched(run, "exact") == before
    refused = run_here(capsys, "identify", tree, tmp_path, "--rematch", "--task", "text_vqa")
    assert refused.returncode == 2
    assert "its dataset verdicts/small was made with other settings" in refused.stderr


def test_rematching_needs_verdicts(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree = scripted_tree(images, tmp_path / "run")
    index(RunContext.open(RunConfig.model_validate(tree)))
    refused = run_here(capsys, "identify", tree, tmp_path, "--rematch")
    assert refused.returncode == 1
    assert "8 of 8 shards have no verdicts of small: run mpa-ray identify" in refused.stderr


def test_a_task_from_a_users_file_is_used(images: Path, tmp_path: Path) -> None:
    task = {
        "name": "mine",
        "annotation_prompt": "Ask and answer.\n{format}",
        "answer_prompt": "Question: {question}",
        "max_answer_words": 1,
        "matcher": {"kind": "anls", "threshold": 0.5},
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(task))
    tree = scripted_tree(images, tmp_path / "run") | {"task": str(tmp_path / "mine.yaml")}
    config = RunConfig.model_validate(tree)
    for phase in (index_and_annotate, identify):
        phase(RunContext.open(config))
    run = Run.open(tree["run_dir"])
    assert run.read_json("fingerprints/verdicts@small.json")["identify.matcher"] == {"kind": "anls", "threshold": 0.5}
    # A scripted student that is wrong says "not 1a2b": by this matcher it agrees.
    assert audit(run).left_out.dropped == {"student_correct": 60}
    tree["task"] = str(tmp_path / "other.yaml")
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(task | {"max_answer_words": 2}))
    with pytest.raises(FingerprintMismatch, match=r"task.max_answer_words: was 1, now 2"):
        annotate(RunContext.open(RunConfig.model_validate(tree)))
