from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest

from mpa_ray.config import Arm, MeasuredModel

ROOT = Path(__file__).parents[2]


def test_a_student_has_a_name_before_and_after_training_on_each_arm() -> None:
    models = MeasuredModel.all_of("small", ["parity", "all"])
    assert [model.name for model in models] == ["small.before", "small.after", "small.all"]


@pytest.mark.parametrize("student", ["small", "small.all", "small.round2", "a.b.before"])
@pytest.mark.parametrize("arm", [None, *get_args(Arm)])
def test_a_name_leads_back_to_its_model(student: str, arm: Arm | None) -> None:
    model = MeasuredModel(student, arm)
    assert MeasuredModel.from_name(model.name) == model


@pytest.mark.parametrize("name", ["teacher", "other.7b", "before", ".before", "small.parity", ""])
def test_other_names_belong_to_no_student(name: str) -> None:
    assert MeasuredModel.from_name(name) is None


def test_no_other_module_composes_these_names() -> None:
    composed = re.compile(r"\}\.(before|after)\"|\}\.\{(when|self\.when)\}|\.rpartition\(\"\.\"\)\[0\], \{\}")
    paths = [path for folder in ("mpa_ray", "benchmarks", "jobs") for path in (ROOT / folder).rglob("*.py")]
    modules = {path.name for path in paths if composed.search(path.read_text())}
    assert modules == {"measured_model.py"}
