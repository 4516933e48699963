"""What a campaign reports about the failures of its threads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mpa_ray.campaign import campaign, end_of_campaign
from mpa_ray.config import RunConfig
from mpa_ray.errors import ConfigError, FingerprintMismatch, RunError
from mpa_ray.phases.context import RunContext
from mpa_ray.phases.level import level
from mpa_ray.phases.measured_models import measured_models
from mpa_ray.run.fingerprint import prediction_fingerprint
from tests.conftest import scripted_tree

QUESTION = {"question_id": "1", "question": "What is it?", "answers": ["red"]}
REFUSED = RunError("evaluate:teacher: the engine of t cannot start: CUDA out of memory")


@pytest.fixture
def config(images: Path, tmp_path: Path) -> RunConfig:
    tree = scripted_tree(images, tmp_path / "run")
    tree["students"][0]["model"] = "bundled:demo/models/student"
    questions = tmp_path / "q.jsonl"
    questions.write_text(json.dumps({**QUESTION, "image": "000.png"}))
    tree["evaluate"] = {"benchmarks": [{"path": str(questions), "images": str(images), "name": "held"}]}
    return RunConfig.model_validate(tree)


def replace_phases(monkeypatch: pytest.MonkeyPatch, **phases: Any) -> None:
    def done(*_: object, **__: object) -> None: ...

    names = ("index_and_annotate", "predict_groups", "identify_group", "identify_student", "level_student")
    for name in names:
        monkeypatch.setattr(campaign, name, phases.get(name, done))
    for name in phases.keys() - set(names):
        monkeypatch.setattr(campaign, name, phases[name])


def test_a_teacher_that_cannot_be_measured_has_not_failed(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def predict(_: object, name: str, __: object) -> None:
        if name == "teacher":
            raise REFUSED

    replace_phases(monkeypatch, predict=predict, prepare_benchmarks=lambda _: None)
    monkeypatch.setattr(campaign, "check_run", lambda _: None)
    monkeypatch.setattr(campaign, "score_and_report", lambda _: {})
    with pytest.raises(RunError, match=r"^measuring teacher failed; all other work is done\..*CUDA out of memory"):
        campaign.align(config)


def test_the_error_of_the_teachers_pass_is_raised_as_it_is_and_the_report_is_written(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def teach(*_: object) -> None:
        raise RunError("annotate:teacher: the engine died 2 times")

    written: list[RunContext[RunConfig]] = []
    replace_phases(monkeypatch, index_and_annotate=teach, prepare_benchmarks=lambda _: None)
    monkeypatch.setattr(campaign, "check_run", lambda _: None)
    monkeypatch.setattr(campaign, "score_and_report", lambda context: written.append(context) or {})
    with pytest.raises(RunError, match=r"^annotate:teacher: the engine died 2 times$"):
        campaign.align(config)
    assert len(written) == 1


def test_the_report_is_written_even_if_nothing_can_be_scored(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    reports: list[object] = []

    def nothing_to_score(*_: object, **__: object) -> None:
        raise RunError("no model has answered a whole benchmark yet")

    monkeypatch.setattr(end_of_campaign, "evaluate", nothing_to_score)
    monkeypatch.setattr(end_of_campaign, "report", reports.append)
    failures = end_of_campaign.score_and_report(RunContext.from_checked(config))
    assert (list(failures), len(reports)) == (["writing the scores"], 1)


def test_a_student_whose_model_cannot_be_trained_is_refused_before_anything_starts(scripted_config: RunConfig) -> None:
    with pytest.raises(ConfigError, match=r"^students\.0\.model = 'scripted': is not a folder"):
        campaign.align(scripted_config)
    with pytest.raises(ConfigError, match=r"^students\.0\.model = 'scripted': is not a folder"):
        level(RunContext.open(scripted_config))


def test_a_student_whose_settings_are_wrong_is_not_checked_further(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In earlier versions, an unknown kind of labelled set of one student ended the command with a KeyError."""
    tree = config.model_dump(mode="json")
    wrong = {"name": "wrong", "arms": ["labels"], "labels": {"kind": "textvka", "path": "labels.jsonl"}}
    tree["students"].append({**tree["students"][0], **wrong})
    done = {"predict": lambda *_: None, "prepare_benchmarks": lambda _: None, "score_and_report": lambda _: {}}
    replace_phases(monkeypatch, **done)
    monkeypatch.setattr(campaign, "check_run", lambda _: None)
    with pytest.raises(RunError, match=r"^wrong failed; .* students\.1\.labels\.kind = 'textvka': is not a kind of"):
        campaign.align(RunConfig.model_validate(tree))


def test_students_have_the_commit_that_the_command_began_with(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In earlier versions, an engine of a student could load a newer commit than the run records."""
    pinned = config.students[0].model_copy(update={"model": "owner/name@abc"})
    monkeypatch.setattr(
        "mpa_ray.phases.context.with_pinned_models", lambda config: config.model_copy(update={"students": [pinned]})
    )
    models: list[str] = []
    done = {"predict": lambda *_: None, "prepare_benchmarks": lambda _: None, "score_and_report": lambda _: {}}
    replace_phases(monkeypatch, identify_student=lambda _, student, __: models.append(student.model), **done)
    monkeypatch.setattr(campaign, "check_run", lambda _: None)
    campaign.align(config)
    assert models == ["owner/name@abc"]


def test_all_trainings_are_compared_with_the_cluster_before_the_first_pass(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mpa_ray.pipeline import cluster

    events: list[str] = []

    def teach(_: object, admission: Any, *__: object) -> None:
        with admission():
            events.append("pass")
        with admission():
            events.append("pass")

    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setattr(cluster, "start_ray", lambda: None)
    monkeypatch.setattr(cluster, "cluster_resources", lambda: (8.0, 0.0))
    monkeypatch.setattr(cluster, "check_resources", lambda need: events.append(need.cpu_field))
    monkeypatch.setattr(campaign, "check_run", lambda _: None)
    monkeypatch.setattr(campaign, "score_and_report", lambda _: {})
    done = {"predict": lambda *_: None, "prepare_benchmarks": lambda _: None}
    replace_phases(monkeypatch, index_and_annotate=teach, **done)
    campaign.align(config)
    assert events == ["students.0.level.cpus_per_worker", "pass", "pass"]


def begun(config: RunConfig) -> None:
    """Give the run of a configuration one shard of each dataset, and the samples of a training run."""
    context = RunContext.open(config)
    folders = ["verdicts/small", "students/small/parity"]
    context.begin(writes=["corpus", "annotations", *folders])
    context.run.corpus.commit("000000", [])
    context.run.annotations.commit("000000", [])
    context.run.verdicts("small").commit("000000", [])
    context.run.fingerprints.fix("students/small/parity")


@pytest.mark.parametrize(
    ("branch", "change", "words"),
    [
        ("students", {"level": {"learning_rate": 0.5}}, r"level\.learning_rate: was 0\.0001, now 0\.5.*rename"),
        ("students", {"max_pixels": 200_000}, r"students\.0\.max_pixels: was .* now 200000.*rename"),
        ("teacher", {"max_pixels": 200_000}, r"teacher\.max_pixels: was .* now 200000"),
        ("source", {"limit": 3}, r"source\.limit: was None, now 3"),
        ("task", "text_vqa", "task: was 'demo_world', now 'text_vqa'"),
    ],
)
def test_changed_settings_are_refused_once_before_anything_starts(
    images: Path,
    tmp_path: Path,
    branch: str,
    change: Any,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tree = scripted_tree(images, tmp_path / "run")
    tree["students"][0]["model"] = "bundled:demo/models/student"
    begun(RunConfig.model_validate(tree))
    if branch == "students":
        tree["students"][0].update(change)
    else:
        tree[branch] = change if branch == "task" else tree[branch] | change
    monkeypatch.setattr(campaign, "score_and_report", lambda _: pytest.fail("a phase began"))
    with pytest.raises(FingerprintMismatch, match=words):
        campaign.align(RunConfig.model_validate(tree))
    assert "other settings" not in "".join(capsys.readouterr())


def test_a_student_with_changed_settings_is_left_out_alone(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config.model_copy(update={"evaluate": None})
    begun(config)
    small = config.students[0]
    changed = small.model_copy(update={"max_pixels": 200_000})
    students = [changed, small.model_copy(update={"name": "other"})]
    trained: list[str] = []
    monkeypatch.setattr(campaign, "check_run", lambda _: None)
    monkeypatch.setattr(campaign, "score_and_report", lambda _: {})
    replace_phases(monkeypatch, level_student=lambda _, student, *__: trained.append(student.name))
    with pytest.raises(RunError, match=r"^small failed; all other work is done"):
        campaign.align(config.model_copy(update={"students": students}))
    assert trained == ["other"]
    assert "small is left out: run_dir" in "".join(capsys.readouterr())


@pytest.mark.parametrize(("name", "setting"), [("other", "evaluate.models.0"), ("teacher", "teacher")])
def test_changed_settings_of_measured_models_are_found_before_the_first_pass(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, setting: str
) -> None:
    """Answers that were made with other settings would otherwise end the command after hours of passes."""
    (tmp_path / "q.jsonl").write_text(json.dumps(QUESTION | {"image": str(images / "000.png")}))
    tree = scripted_tree(images, tmp_path / "run")
    tree["students"][0]["model"] = "bundled:demo/models/student"
    other = {"name": "other", "model": "scripted", "engine": {"kind": "scripted", "wrong_rate": 0.25}}
    tree["evaluate"] = {"benchmarks": [{"path": str(tmp_path / "q.jsonl"), "name": "held"}], "models": [other]}
    context = RunContext.open(RunConfig.model_validate(tree))
    folder = context.run.predictions("held", name).folder
    model = measured_models(context)[name]
    context.run.register_fingerprint(folder, prediction_fingerprint(context.config, context.task, model))
    context.run.fingerprints.fix(folder)
    other["engine"] = {"kind": "scripted", "wrong_rate": 0.5}
    tree["teacher"]["engine"] = {"kind": "scripted", "wrong_rate": 0.1}
    if name == "teacher":
        other["engine"] = {"kind": "scripted", "wrong_rate": 0.25}
    begun: list[object] = []
    replace_phases(monkeypatch, index_and_annotate=lambda *words: begun.append(words))
    monkeypatch.setattr(campaign, "score_and_report", lambda _: {})
    with pytest.raises(FingerprintMismatch, match=rf"other settings: {setting}\.engine\.wrong_rate: was "):
        campaign.align(RunConfig.model_validate(tree))
    assert not begun


@pytest.mark.parametrize("name", ["report", "score", "evaluate"])
def test_the_error_of_a_student_with_the_name_of_a_phase_is_kept(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RunError("the student's error")

    def nothing_to_score(*_: object, **__: object) -> None:
        raise RunError("the phase's error")

    student = config.students[0].model_copy(update={"name": name})
    replace_phases(monkeypatch, level_student=fail, prepare_benchmarks=lambda _: None, predict=lambda *_: None)
    monkeypatch.setattr(campaign, "check_run", lambda _: None)
    monkeypatch.setattr(campaign, "measured_models", nothing_to_score)
    for phase in ("evaluate", "report"):
        monkeypatch.setattr(end_of_campaign, phase, nothing_to_score)
    with pytest.raises(RunError, match=rf"{name}: the student's error"):
        campaign.align(config.model_copy(update={"students": [student]}))
