"""A labelled set with an error anywhere in its files is refused before the run directory is created."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import mpa_ray
from mpa_ray.config import EvaluationRunConfig, RunConfig
from mpa_ray.errors import ConfigError
from tests.conftest import scripted_tree

ROW = {"image": "000.png", "question": "Is it?", "answers": ["yes"]}


def tree_with(images: Path, run_dir: Path, **first_student: Any) -> dict[str, Any]:
    tree = scripted_tree(images, run_dir)
    tree["students"][0] |= {"model": "bundled:demo/models/student", **first_student}
    return tree


def questions(path: Path, *changes: dict[str, object]) -> Path:
    """A file of questions, whose rows have these changes."""
    path.write_text("\n".join(json.dumps({**ROW, "question_id": str(i), **row}) for i, row in enumerate(changes)))
    return path


@pytest.mark.parametrize("command", ["align", "evaluate"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answers": []}, r"benchmarks\.0\.path = .*: line 301: the answers are missing"),
        ({"image": "gone.png"}, r"benchmarks\.0\.images = .*gone\.png.*missing image files: 1 of 2"),
        ({"question_id": "0"}, r"benchmarks\.0\.path = .*: has question_id '0' twice"),
    ],
)
def test_an_error_in_a_benchmark(
    command: str, changes: dict[str, object], message: str, images: Path, tmp_path: Path
) -> None:
    path = questions(tmp_path / "q.jsonl", *[{}] * 300, changes)
    tree = tree_with(images, tmp_path / "run")
    tree["evaluate"] = {"benchmarks": [{"path": str(path), "images": str(images), "name": "held"}]}
    config = RunConfig.model_validate(tree)
    with pytest.raises(ConfigError, match=message):
        mpa_ray.align(config) if command == "align" else mpa_ray.run_phase(config, "evaluate")
    assert not (tmp_path / "run").exists()


def test_an_error_in_a_benchmark_of_a_run_that_only_measures_models(images: Path, tmp_path: Path) -> None:
    path = questions(tmp_path / "q.jsonl", {}, {"question": ""})
    model = {"name": "rival", "model": "bundled:demo/models/student"}
    evaluate = {"benchmarks": [{"path": str(path), "images": str(images)}], "models": [model]}
    tree = {"run_dir": str(tmp_path / "run"), "task": "demo_world", "evaluate": evaluate}
    with pytest.raises(ConfigError, match=r"benchmarks\.0\.path = .*: line 2: 'question' is missing"):
        mpa_ray.run_phase(EvaluationRunConfig.model_validate(tree), "evaluate")
    assert not (tmp_path / "run").exists()


def test_an_error_in_a_labelled_set_of_the_only_student(images: Path, tmp_path: Path) -> None:
    path = questions(tmp_path / "labels.jsonl", {}, {"answers": []})
    tree = tree_with(images, tmp_path / "run", arms=["labels"], labels={"path": str(path)})
    with pytest.raises(ConfigError, match=r"^students\.0\.labels\.path = .*: line 2: the answers are missing"):
        mpa_ray.align(RunConfig.model_validate(tree))
    assert not (tmp_path / "run").exists()
