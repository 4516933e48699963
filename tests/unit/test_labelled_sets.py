"""Errors in labelled sets: they name the settings that the user wrote, and show before anything starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mpa_ray.campaign.campaign import align
from mpa_ray.config import RunConfig
from mpa_ray.errors import ConfigError
from mpa_ray.phases.context import RunContext
from mpa_ray.phases.index import index
from mpa_ray.phases.level import check_labelled_sets, sample_sources
from mpa_ray.phases.preflight import check_config
from mpa_ray.run.run import Run
from tests.conftest import scripted_tree

SETTINGS = {
    "labels": "labels",
    "level.replay_from": "parity",
    "level.holdout.questions": "all",
}
"""The settings of a student that are labelled sets, each with an arm that uses it."""
ROW = {"question_id": "q", "image": "a.png", "question": "Is it?", "answers": ["yes"]}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write(tmp_path / "set.jsonl", {})


def write(path: Path, changes: dict[str, object]) -> Path:
    path.write_text(json.dumps(ROW | changes))
    return path


def config_with(tmp_path: Path, setting: str, **labelled: object) -> RunConfig:
    """A run whose second student has a labelled set."""
    (tmp_path / "images").mkdir(exist_ok=True)
    (tmp_path / "images/a.png").touch()
    tree = scripted_tree(tmp_path / "images", tmp_path / "run")
    first = tree["students"][0]
    student: dict[str, Any] = {**first, "name": "second", "arms": [SETTINGS[setting]], "level": {}}
    *branch, last = setting.split(".")
    inner = student
    for key in branch:
        inner = inner.setdefault(key, {})
    inner[last] = labelled
    if last == "replay_from":
        student["level"]["replay_share"] = 0.5
    return RunConfig.model_validate({**tree, "students": [first, student]})


@pytest.mark.parametrize("setting", SETTINGS)
def test_an_error_in_a_file_names_the_setting_of_the_student(tmp_path: Path, path: Path, setting: str) -> None:
    """In earlier versions, the error named `benchmark.path`, which is not a setting."""
    context = RunContext.open(config_with(tmp_path, setting, path=str(path)))
    student = context.config.students[1]
    check_labelled_sets(context, student)
    write(path, {"answers": []})
    expected = rf"^students\.1\.{setting}\.path = '{path}': line 1: the answers are missing"
    with pytest.raises(ConfigError, match=expected):
        check_labelled_sets(context, student)
    index(context)
    sources = sample_sources(context, student)
    (samples,) = filter(None, (sources.labels, sources.replayed, sources.held_out))
    with pytest.raises(ConfigError, match=expected):
        list(samples())


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_setting_that_does_not_apply_is_refused_before_anything_starts(
    tmp_path: Path, path: Path, setting: str
) -> None:
    """In earlier versions, the check passed, and training failed after the teacher's pass."""
    config = config_with(tmp_path, setting, path=str(path), annotations=str(path))
    with pytest.raises(ConfigError, match=rf"^students\.1\.{setting}\.annotations = .*: does not apply to questions"):
        check_config(config)


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_setting_of_a_missing_file_with_answers_is_named(tmp_path: Path, path: Path, setting: str) -> None:
    missing = str(tmp_path / "missing.json")
    config = config_with(tmp_path, setting, kind="vqav2", path=str(path), annotations=missing)
    with pytest.raises(ConfigError, match=rf"^students\.1\.{setting}\.annotations = '{missing}': cannot be read"):
        check_config(config)


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_comparison_of_fingerprints_names_the_setting_too(tmp_path: Path, path: Path, setting: str) -> None:
    context = RunContext.open(config_with(tmp_path, setting, path=str(path)))
    path.unlink()
    with pytest.raises(ConfigError, match=rf"^students\.1\.{setting}\.path = '{path}': "):
        context.begin(writes=[Run.student_dir("second", SETTINGS[setting])])


def test_a_student_of_a_later_round_has_the_settings_of_the_first(tmp_path: Path, path: Path) -> None:
    config = config_with(tmp_path, "level.holdout.questions", path=str(path))
    first, second = config.students
    config = config.model_copy(update={"students": [first.model_copy(update={"rounds": 2}), second]})
    context = RunContext.from_checked(config)
    later = second.model_copy(update={"name": second.name})
    assert context.labelled_set(later, "level.holdout.questions").field == "students.1.level.holdout.questions"
    second = second.model_copy(update={"rounds": 3})
    context = RunContext.from_checked(config.model_copy(update={"students": [first, second]}))
    later = second.model_copy(update={"name": "second.round3"})
    assert context.labelled_set(later, "level.holdout.questions").field == "students.1.level.holdout.questions"


def test_the_remedy_names_the_setting_too(tmp_path: Path, path: Path) -> None:
    context = RunContext.open(config_with(tmp_path, "labels", path=str(path), columns={"family": "topic"}))
    with pytest.raises(ConfigError, match=r"'topic' is missing\. Check students\.1\.labels\.columns\.$"):
        check_labelled_sets(context, context.config.students[1])


def test_a_labelled_set_is_not_read_again_once_its_training_is_planned(tmp_path: Path, path: Path) -> None:
    context = RunContext.open(config_with(tmp_path, "labels", path=str(path)))
    write(path, {"answers": []})
    context.run.write_json(f"{context.run.training_dir('second', 'labels')}/epoch/manifest.json", {})
    check_labelled_sets(context, context.config.students[1])


def test_a_labelled_set_of_an_arm_that_is_not_trained_is_not_read(tmp_path: Path, path: Path) -> None:
    context = RunContext.open(config_with(tmp_path, "labels", path=str(write(path, {"answers": []}))))
    student = context.config.students[1].model_copy(update={"arms": ("parity",)})
    check_labelled_sets(context, student)


def test_a_campaign_reads_labelled_sets_before_anything_starts(tmp_path: Path, path: Path) -> None:
    config = config_with(tmp_path, "labels", path=str(write(path, {"answers": []})))
    student = config.students[1].model_copy(update={"model": "bundled:demo/models/student"})
    config = config.model_copy(update={"students": [student]})
    with pytest.raises(ConfigError, match=r"^students\.0\.labels\.path = .*the answers are missing"):
        align(config)
    assert not (tmp_path / "run/corpus").exists()
