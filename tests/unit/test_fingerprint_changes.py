"""A changed setting is named as the configuration names it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mpa_ray.config import ModelBranches, RunConfig
from mpa_ray.run.fingerprint_changes import changes_in_words
from tests.conftest import scripted_tree


@pytest.fixture
def branches(images: Path, tmp_path: Path) -> ModelBranches:
    tree: dict[str, Any] = scripted_tree(images, tmp_path / "run")
    engine = {"kind": "scripted"}
    students = [{"name": "large", "model": "x", "engine": engine, "rounds": 2}, *tree["students"]]
    further = [{"name": name, "model": "x", "engine": engine} for name in ("first", "small")]
    tree |= {"students": students, "evaluate": {"benchmarks": [{"path": "q.jsonl"}], "models": further}}
    return ModelBranches.of(RunConfig.model_validate(tree))


@pytest.mark.parametrize(
    ("dataset", "field", "setting"),
    [
        ("corpus", "limit", "source.limit"),
        ("corpus", "algorithm_version", "algorithm_version"),
        ("annotations", "teacher.model", "teacher.model"),
        ("annotations", "teacher.engine", "teacher.engine.kind"),
        ("annotations", "teacher.dtype", "teacher.engine.dtype"),
        ("annotations", "annotate.sampling.top_p", "annotate.sampling.top_p"),
        ("verdicts/small", "student.model", "students.1.model"),
        ("verdicts/large.round2", "student.max_pixels", "students.0.max_pixels"),
        ("verdicts/small", "student.engine_args.seed", "students.1.engine.engine_args.seed"),
        ("verdicts/small", "identify.matcher", "identify.matcher"),
        ("students/large/parity", "level.seed", "students.0.level.seed"),
        ("students/large/parity", "student.model", "students.0.model"),
        ("evaluation/held/predictions/small.after", "model", "students.1.model"),
        ("evaluation/held/predictions/small.after~2", "model", "students.1.model"),
        ("evaluation/held/predictions/small", "model", "evaluate.models.1.model"),
        ("evaluation/held/predictions/first", "dtype", "evaluate.models.0.engine.dtype"),
        ("evaluation/held/predictions/teacher", "min_pixels", "teacher.min_pixels"),
        ("evaluation/held/predictions/teacher", "task_version", "task_version"),
        ("evaluation/held/questions", "limit", "limit"),
    ],
)
def test_changed_settings_are_named_as_in_the_configuration(
    branches: ModelBranches, dataset: str, field: str, setting: str
) -> None:
    assert changes_in_words(dataset, {field: (1, 2)}, branches) == f"{setting}: was 1, now 2"
