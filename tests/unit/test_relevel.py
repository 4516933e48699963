"""Students whose D_PI was made again after their training: marked as such, and trained again only if asked to."""

from __future__ import annotations

import json
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from mpa_ray.config import RunConfig
from mpa_ray.errors import ConfigError, FingerprintMismatch, RunError
from mpa_ray.leveling import driver
from mpa_ray.phases.context import RunContext
from mpa_ray.phases.level import level_student
from mpa_ray.phases.repeated_work import Again
from mpa_ray.records import Annotation, ImageRef, Verdict
from mpa_ray.report.render_status import render_status
from mpa_ray.report.status import status
from mpa_ray.run import ownership
from mpa_ray.run.fingerprint import prediction_fingerprint
from mpa_ray.run.parity_export import export_parity
from mpa_ray.run.run import Run
from mpa_ray.stages.judge import parity_samples
from mpa_ray.tasks.library import TASKS
from tests.conftest import scripted_tree

SHARD = "000000"


def verdicts(num_kept: int) -> list[Verdict]:
    return [
        Verdict(
            f"{number}.png#0",
            f"{number}.png",
            f"/images/{number}.png",
            "kept" if number < num_kept else "failed",
            None if number < num_kept else "storage",
            question="?",
            answer="a",
            student_answer="b",
            num_prompt_tokens=9,
            teacher_agrees=True if number < num_kept else None,
        )
        for number in range(4)
    ]


def export(run: Run) -> None:
    version = run.verdicts("small").version()
    samples = parity_samples(run.verdicts("small").rows([SHARD]))
    export_parity(run, run.parity_dir("small"), TASKS["demo_world"], samples, {"verdicts": version})


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """The folder and the number of samples of each training run; no model is trained."""
    done: list[tuple[str, int]] = []

    def fine_tune(run: Run, _: Any, __: Any, ___: str, ____: Any, plan: Any, folder: str, *_____: Any) -> None:
        done.append((folder, plan.counts.num_samples))
        run.storage.write(f"{folder}/merged/config.json", str(len(done)).encode())

    monkeypatch.setattr("mpa_ray.leveling.driver.fine_tune", fine_tune)
    monkeypatch.setattr("mpa_ray.pipeline.cluster.start_ray", lambda: None)
    monkeypatch.setattr("mpa_ray.phases.level.check_export", lambda *_: None)
    return done


@pytest.fixture
def config(images: Path, tmp_path: Path) -> RunConfig:
    return RunConfig.model_validate(scripted_tree(images, tmp_path / "run"))


def level(config: RunConfig, relevel: bool = False) -> Run:
    context = RunContext.from_checked(config, Again(relevel=relevel))
    level_student(context, config.students[0], "parity")
    return context.run


@pytest.fixture
def run(config: RunConfig) -> Run:
    run = Run.open(config.run_dir)
    run.write_json("corpus/manifest.json", {"num_images": 4, "num_shards": 1})
    run.corpus.commit(SHARD, [ImageRef(f"{number}.png", f"/images/{number}.png") for number in range(4)])
    rows = [Annotation(v.annotation_id, v.image_id, v.uri, v.state, v.reason) for v in verdicts(2)]
    run.annotations.commit(SHARD, rows)
    run.verdicts("small").commit(SHARD, verdicts(2))
    RunContext.from_checked(config).begin(writes=["corpus", "annotations", "verdicts/small"])
    export(run)
    return run


def redo(run: Run) -> None:
    rows = [Annotation(v.annotation_id, v.image_id, v.uri, v.state, v.reason) for v in verdicts(4)]
    run.annotations.commit(SHARD, rows, 1)
    run.verdicts("small").commit(SHARD, verdicts(4), 1, 1)
    export(run)


def test_a_student_is_trained_again_only_if_asked_to(
    config: RunConfig, run: Run, trainings: list[tuple[str, int]], capsys: pytest.CaptureFixture[str]
) -> None:
    level(config)
    level(config, relevel=True)
    assert trainings == [("students/small/parity", 2)]
    assert "level small: already done" in capsys.readouterr().out
    first = run.predictions("b", "small.after").folder

    redo(run)
    level(config)
    assert len(trainings) == 1
    assert "level small: the student was trained on an earlier D_PI, which has been made again since." in (
        capsys.readouterr().out
    )
    run.write_json("students/small/parity/training.json", {"step": 1, "num_steps": 1})
    assert "trained on an earlier D_PI: --relevel trains it again" in render_status(status(run))

    level(config, relevel=True)
    assert trainings[1:] == [("students/small/parity/again-1", 4)]
    assert run.merged_model("small").endswith("students/small/parity/again-1/merged")
    assert Path(run.storage.root, "students/small/parity/merged/config.json").read_text() == "1"
    assert run.is_leveled("small")
    assert run.predictions("b", "small.after").folder == f"{first}~1"
    assert run.predictions("b", "small.before").folder == "evaluation/b/predictions/small.before"
    level(config, relevel=True)
    assert len(trainings) == 2


@pytest.mark.parametrize(("changes", "folder"), [(False, "small.after"), (True, "small.after~1")])
def test_answers_of_other_weights_are_not_those_of_a_repaired_student(
    config: RunConfig,
    run: Run,
    trainings: list[tuple[str, int]],
    monkeypatch: pytest.MonkeyPatch,
    changes: bool,
    folder: str,
) -> None:
    """In earlier versions, the command was refused, because the answers were made with other settings."""

    def fine_tune(run: Run, *_: Any) -> None:
        trainings.append(("", 0))
        content = f"weights {len(trainings) * changes}".encode()
        run.storage.write("students/small/parity/merged/model.safetensors", content)

    monkeypatch.setattr(driver, "fine_tune", fine_tune)
    level(config)
    model = config.students[0].model_copy(update={"model": run.merged_model("small")})
    for benchmark in ("one", "two"):
        context = RunContext.from_checked(config)
        predictions = context.run.predictions(benchmark, "small.after")
        context.run.register_fingerprint(predictions.folder, prediction_fingerprint(config, context.task, model))
        context.run.predictions(benchmark, "small.after").commit(SHARD, [])
    run.storage.delete("students/small/parity/complete.json")
    for _ in range(2):
        level(config)
        assert len(trainings) == 2
        assert run.predictions("one", "small.after").folder == f"evaluation/one/predictions/{folder}"
        assert run.predictions("two", "small.after").folder == f"evaluation/two/predictions/{folder}"


def test_a_training_that_was_begun_before_redo_is_of_that_time(
    config: RunConfig, run: Run, trainings: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("mpa_ray.leveling.driver.fine_tune", killed)
        with pytest.raises(KeyboardInterrupt):
            level(config)
    redo(run)
    level(config)
    assert trainings == [("students/small/parity", 2)], "a training continues with the samples that it began with"
    assert run.is_trained_before_redo("small", "parity")


def test_samples_that_are_older_than_their_verdicts_are_not_trained_on(
    config: RunConfig, run: Run, trainings: list[tuple[str, int]]
) -> None:
    run.verdicts("small").commit(SHARD, verdicts(4), 1)
    with pytest.raises(
        RunError, match=r"parity samples of small are older than its verdicts\. Run mpa-ray identify first"
    ):
        level(config)
    export(run)
    run.annotations.commit(SHARD, [], 1)
    with pytest.raises(RunError, match="older than its verdicts"):
        level(config)
    assert not trainings


def test_a_student_with_later_rounds_is_not_trained_again(
    config: RunConfig, run: Run, trainings: list[tuple[str, int]]
) -> None:
    level(config)
    redo(run)
    students = [config.students[0].model_copy(update={"rounds": 2})]
    with pytest.raises(ConfigError, match=r"--relevel = 'small': has several rounds"):
        level(config.model_copy(update={"students": students}), relevel=True)
    assert len(trainings) == 1


def test_a_second_command_waits_for_the_training_of_the_first(
    config: RunConfig,
    run: Run,
    trainings: list[tuple[str, int]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In earlier versions, both commands trained the student at the same time, and replaced each other's checkpoints
    and export."""
    waits = threading.Event()
    monkeypatch.setattr(ownership, "say", lambda _: waits.set())
    fine_tune = driver.fine_tune
    second = threading.Thread(target=level, args=(config,))

    def fine_tune_slowly(*args: Any) -> None:
        second.start()
        assert waits.wait(60)
        fine_tune(*args)

    monkeypatch.setattr(driver, "fine_tune", fine_tune_slowly)
    level(config)
    second.join(60)
    assert not second.is_alive()
    assert len(trainings) == 1
    assert "level small: another command has finished this training" in capsys.readouterr().out
    assert run.read_json("students/small/parity/complete.json") == {"owner": 1, "has_checksums": False}


def test_a_command_that_lost_its_training_does_not_complete_it(
    config: RunConfig, run: Run, trainings: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def check_slowly(*_: Any) -> None:
        owner = asdict(ownership.Owner.this_process(2))
        run.storage.write("students/small/parity/owners/2.json", json.dumps(owner).encode())

    monkeypatch.setattr("mpa_ray.phases.level.check_export", check_slowly)
    with pytest.raises(ownership.LostOwnership):
        level(config)
    assert len(trainings) == 1
    assert not run.is_leveled("small")


def test_a_command_with_other_settings_does_not_wait_for_the_training(
    config: RunConfig, run: Run, trainings: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise, it would wait for hours and then be refused."""
    first, students = RunContext.from_checked(config), config.students
    changed = students[0].level.model_copy(update={"learning_rate": 5e-4})
    other = config.model_copy(update={"students": [students[0].model_copy(update={"level": changed})]})

    def commit_first_samples(*_: Any) -> None:
        first.run.epoch("students/small/parity").commit(SHARD, [])

    first.begin(writes=["students/small/parity"])
    monkeypatch.setattr(ownership, "say", commit_first_samples)
    with (
        ownership.owned(run.storage, "students/small/parity", "level small"),
        pytest.raises(FingerprintMismatch, match=r"level\.learning_rate: was 0\.0001, now 0\.0005"),
    ):
        level(other)
    assert not trainings
