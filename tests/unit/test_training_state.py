"""What is stored about a training run and its export, and what is read back."""

from __future__ import annotations

from pathlib import Path

import pytest

from mpa_ray.run.export_check import CheckedAnswer, ExportCheck
from mpa_ray.run.run import Run
from mpa_ray.run.sealed_json import parse_sealed
from mpa_ray.run.training_log import LogEntry, LogFiles, TrainingLog
from mpa_ray.run.training_state import Resumption, Retained, TrainingState

STORED = {
    "step": 10,
    "num_steps": 15,
    "num_unreadable": None,
    "num_changed": None,
    "best_step": 5,
    "retained": {"num": 20, "before": 18},
    "resumed": [{"from_step": 3, "had_reached": 5, "workers": 2}],
    "attempt": 1,
    "log_files": [{"attempt": 0, "num_files": 2, "last_step": 3}, {"attempt": 1, "num_files": 0, "last_step": None}],
    "log": [
        {"loss": 2.0, "grad_norm": 1.5, "samples_per_s": 1.0, "padding_share": 0.0, "epoch": 0.3, "step": 5},
        {"eval_loss": 0.7, "epoch": 0.3, "step": 5},
        {"loss": 1.0, "grad_norm": 0.5, "samples_per_s": 8.0, "padding_share": 0.1, "epoch": 0.7, "step": 10},
        {"train_runtime": 12.5, "train_loss": 1.5, "epoch": 1.0, "step": 10},
    ],
}
FOLDER = "students/s/parity"


def test_a_training_is_stored_as_it_was_read(tmp_path: Path) -> None:
    run = Run.open(str(tmp_path))
    assert TrainingState.read(run, FOLDER) is None
    run.write_json(f"{FOLDER}/training.json", STORED)
    state = TrainingState.read(run, FOLDER)
    assert state is not None
    state.write(run, FOLDER)
    assert parse_sealed((tmp_path / FOLDER / "training.json").read_bytes()) == STORED


def test_fields_of_a_training_are_typed() -> None:
    state = TrainingState.from_json(STORED)
    assert state.retained == Retained(num=20, before=18, after=None)
    assert state.resumed == (Resumption(from_step=3, had_reached=5, workers=2),)
    assert state.resumed[0].num_repeated_steps == 2
    assert state.log_files == (LogFiles(attempt=0, num_files=2, last_step=3), LogFiles(attempt=1))
    assert state.log.entries[1] == LogEntry(step=5, eval_loss=0.7, other={"epoch": 0.3})
    assert [entry.step for entry in state.log.loss_entries] == [5, 10]


def test_the_first_measurement_of_speed_counts_only_where_there_is_no_other() -> None:
    log = TrainingState.from_json(STORED).log
    assert [entry.samples_per_s for entry in log.speed_entries] == [8.0]
    first = TrainingLog(log.entries[:2])
    assert [entry.samples_per_s for entry in first.speed_entries] == [1.0]
    assert (log.samples_per_s, first.samples_per_s, TrainingLog().samples_per_s) == (8.0, 1.0, None)


@pytest.mark.parametrize(
    ("retained", "is_warned"),
    [
        (Retained(num=120, before=100, after=95), False),
        (Retained(num=120, before=100, after=94), True),
        (Retained(num=0, before=0, after=0), False),
        (Retained(num=10, before=10), False),
    ],
)
def test_a_loss_of_over_a_twentieth_of_the_retained_pairs_is_warned_of(retained: Retained, is_warned: bool) -> None:
    assert (retained.forgetting_warning() is not None) == is_warned


def test_an_export_check_is_stored_as_it_was_written(tmp_path: Path) -> None:
    run = Run.open(str(tmp_path))
    check = ExportCheck((CheckedAnswer("a#0", "a", "/a.png", "Which colour?", "grün"),))
    check.write(run, FOLDER)
    assert ExportCheck.read(run, FOLDER) == check
    answer = {"annotation_id": "a#0", "image_id": "a", "uri": "/a.png", "question": "Which colour?", "answer": "grün"}
    assert parse_sealed((tmp_path / FOLDER / "check.json").read_bytes()) == {
        "answers": [{**answer, "near_ties": []}],
        "repairs": [],
    }
