"""Every benchmark's official format is read, answered on real vLLM and scored; answers do not depend on batching."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForImageTextToText, AutoProcessor

from mpa_ray.config import resolve_path
from mpa_ray.evaluation.benchmarks import BENCHMARKS
from mpa_ray.metrics import METRICS
from mpa_ray.records import Prediction
from mpa_ray.run.run import Run
from tests.official_formats import draw_questions, write_official

ROOT = Path(__file__).parents[2]
NUM_IMAGES, PER_IMAGE = 6, 4
STUDENT = "bundled:demo/models/student"


def served(model: str, **settings: Any) -> dict[str, Any]:
    engine = {"dtype": "float32", "max_model_len": 512, "max_num_seqs": settings.pop("max_num_seqs", 64)}
    return {"model": model, "engine": engine, "min_pixels": 3136, "max_pixels": 12544, **settings}


def adapters(folder: Path) -> tuple[Path, Path]:
    """A LoRA adapter of the student with weights that change its answers, and the same adapter merged by hand."""
    start = resolve_path(STUDENT)
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_pretrained(start, dtype=torch.float32)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=r".*language_model.*(q_proj|v_proj)"))
    for name, weights in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weights, std=0.2)
    adapted.save_pretrained(folder / "adapter")
    adapted.merge_and_unload().save_pretrained(folder / "merged")
    AutoProcessor.from_pretrained(start).save_pretrained(folder / "merged")
    return folder / "adapter", folder / "merged"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One evaluation of all benchmarks, with the student under several names."""
    folder = tmp_path_factory.mktemp("evaluation")
    adapter, merged = adapters(folder)
    tree = {
        "run_dir": str(folder / "run"),
        "task": "demo_world",
        "evaluate": {
            "benchmarks": [
                write_official(kind, folder / kind, draw_questions(NUM_IMAGES, PER_IMAGE, seed))
                for seed, kind in enumerate(BENCHMARKS)
            ],
            "models": [
                {"name": "teacher", **served("bundled:demo/models/teacher")},
                {"name": "student", **served(STUDENT), "compared_to": "teacher"},
                {"name": "student.alone", **served(STUDENT, max_num_seqs=1)},
                {"name": "student.replicas", **served(STUDENT, max_num_seqs=7, num_replicas=2)},
                {"name": "adapter", **served(str(adapter))},
                {"name": "merged", **served(str(merged))},
            ],
            # Small, so that both replicas get shards.
            "shard_size": 16,
        },
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(tree))
    done = subprocess.run(
        [sys.executable, "jobs/evaluate.py", "--config", str(folder / "config.yaml")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=800,
        env={**os.environ, "MPA_RAY_CACHE": str(folder / "cache")},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout)
    return Run.open(tree["run_dir"])


def predictions(run: Run, benchmark: str, model: str) -> list[Prediction]:
    return list(run.predictions(benchmark, model).rows(run.manifest(f"evaluation/{benchmark}").shards))


def by_model(run: Run, model: str) -> dict[str, str | None]:
    return {f"{kind}/{row.question_id}": row.prediction for kind in BENCHMARKS for row in predictions(run, kind, model)}


pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]


@pytest.mark.parametrize("kind", BENCHMARKS)
def test_every_official_format_is_answered_and_scored(kind: str, run: Run) -> None:
    scored = run.read_json("evaluation/scores.json")[kind]
    # Kind `questions` takes the task's metric, which is exact_match for the bundled world, too.
    assert scored["metric"]["name"] == BENCHMARKS[kind].metric
    score = METRICS[BENCHMARKS[kind].metric].score
    means = {}
    for model in ("teacher", "student"):
        rows = predictions(run, kind, model)
        assert len(rows) == NUM_IMAGES * PER_IMAGE
        assert all(row.prediction is not None and (row.state, row.reason) == ("kept", None) for row in rows)
        means[model] = scored["models"][model]["groups"]["all"]["mean"]
        assert means[model] == pytest.approx(fmean(score(row.prediction or "", row.answers) for row in rows))
    assert means["teacher"] > 0.9 > means["student"] > 0.3
    (pair,) = scored["differences"]
    assert pair["groups"]["all"]["mean"] == pytest.approx(means["student"] - means["teacher"])


def test_splits_are_scored_separately(run: Run) -> None:
    scores = run.read_json("evaluation/scores.json")
    for kind, parts in (("chartqa", {"human", "augmented"}), ("slake", {"en", "zh"})):
        groups = scores[kind]["models"]["teacher"]["groups"]
        assert {name for name in groups if name.startswith("split: ")} == {f"split: {part}" for part in parts}
        assert sum(groups[f"split: {part}"]["num_questions"] for part in parts) == NUM_IMAGES * PER_IMAGE


@pytest.mark.parametrize("other", ["student.alone", "student.replicas"])
def test_the_same_score_at_every_batch_size_and_number_of_replicas(other: str, run: Run) -> None:
    scores = run.read_json("evaluation/scores.json")
    one, two = by_model(run, "student"), by_model(run, other)
    ties = [f"{question}: {one[question]!r}, {two[question]!r}" for question in one if one[question] != two[question]]
    # Another order of summation may flip a near-tie between two tokens, which is rare.
    print(f"{len(ties)} of {len(one)} answers of {other} differ: {ties}")
    assert len(ties) <= 0.01 * len(one)
    if not ties:
        for kind in BENCHMARKS:
            models = scores[kind]["models"]
            assert models["student"]["groups"] == models[other]["groups"]


def test_an_adapter_answers_like_its_merged_model(run: Run) -> None:
    adapter, merged, plain = (by_model(run, name) for name in ("adapter", "merged", "student"))
    assert adapter == merged
    # The base model answers differently.
    assert sum(adapter[question] != plain[question] for question in plain) > 0.1 * len(plain)
    fingerprint = run.read_json("fingerprints/evaluation@gqa@predictions@adapter.json")
    assert fingerprint["model"].count("sha256:") == 2
