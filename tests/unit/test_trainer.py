"""What a trainer does at the end of training, and when it starts from a checkpoint of the end."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import ray.train
import torch
from torch import nn
from torch.utils.data import IterableDataset

from mpa_ray.config import HoldoutConfig, LevelConfig
from mpa_ray.leveling import trainer as trainers
from mpa_ray.leveling.job import TrainingJob
from mpa_ray.leveling.step_data import Step
from mpa_ray.leveling.trainer import ParityTrainer, TrainingData
from mpa_ray.leveling.worker import training_arguments
from mpa_ray.run.run import Run
from mpa_ray.run.training_state import TrainingState
from mpa_ray.storage.local import LocalStorage

FOLDER = "students/s/parity"
NUM_STEPS = 6


class StepsInMemory(IterableDataset[Step]):
    """Steps with an empty micro-batch each."""

    def __init__(self, num_steps: int) -> None:
        self.num_steps = num_steps
        self.first = 0

    def __iter__(self) -> Iterator[Step]:
        batch = {"labels": torch.tensor([[-100, 1]]), "attention_mask": torch.ones(1, 2, dtype=torch.long)}
        return iter([Step([batch], num_unreadable=0) for _ in range(self.first, self.num_steps)])


@pytest.fixture
def checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The checkpoints that a trainer reports, without Ray and with losses that only rise."""
    saved: list[Path] = []

    def report(metrics: dict[str, Any], checkpoint: ray.train.Checkpoint) -> None:
        saved.append(Path(shutil.copytree(checkpoint.path, tmp_path / f"checkpoint-{metrics['step']}-{len(saved)}")))

    losses = iter(range(1, 100))
    monkeypatch.setattr(ray.train, "report", report)
    monkeypatch.setattr(trainers, "mean_loss", lambda *_: float(next(losses)))
    monkeypatch.setattr(trainers, "answer_loss", lambda model, *_: model.weight.sum())
    monkeypatch.setattr(trainers, "total_answered", lambda *_: 3)
    return saved


def trained(folder: Path, level: LevelConfig, checkpoint: Path | None = None) -> tuple[TrainingState, int]:
    """Train, and return the stored state and the number of steps that were trained."""
    run = Run(LocalStorage(str(folder / "run")))
    plan = SimpleNamespace(num_steps=NUM_STEPS, retained=range(4))
    job = cast(TrainingJob, SimpleNamespace(plan=plan, level=level, run=run, folder=FOLDER, check_owner=lambda: None))
    data = TrainingData(*(cast(Any, StepsInMemory(num_steps)) for num_steps in (NUM_STEPS, 1, 1)))
    arguments = training_arguments(job, str(folder / "scratch"), on_gpu=False)
    trainer = ParityTrainer(job, data, model=nn.Linear(1, 1, bias=False), args=arguments)
    first = int(checkpoint.name.split("-")[1]) if checkpoint is not None else 0
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    trainer.measure_retained(is_trained=True)
    trainer.write_state()
    state = TrainingState.read(run, FOLDER)
    assert state is not None
    return state, trainer.state.global_step - first


EARLY_STOP = LevelConfig(holdout=HoldoutConfig(every_steps=1, patience=2))


@pytest.mark.parametrize(("level", "last_step"), [(LevelConfig(), NUM_STEPS), (EARLY_STOP, 3)])
def test_a_training_from_the_checkpoint_of_its_end_trains_no_step(
    level: LevelConfig, last_step: int, checkpoints: list[Path], tmp_path: Path
) -> None:
    before, num_steps = trained(tmp_path, level)
    assert (before.step, num_steps) == (last_step, last_step)
    assert [path.name.split("-")[1] for path in checkpoints] == [str(last_step)]
    after, num_steps = trained(tmp_path, level, checkpoints[0])
    assert (after.step, after.best_step, num_steps) == (before.step, before.best_step, 0)
    assert [entry.from_step for entry in after.resumed] == [last_step]
    assert after.whole_log(Run(LocalStorage(str(tmp_path / "run"))), FOLDER) == before.log
    assert after.is_trained
    assert not after.is_exported


def test_a_checkpoint_does_not_hold_the_log(checkpoints: list[Path], tmp_path: Path) -> None:
    state, _ = trained(tmp_path, LevelConfig(holdout=HoldoutConfig(every_steps=1), checkpoint_every_steps=2))
    assert len([entry for entry in state.log.entries if entry.eval_loss is not None]) == NUM_STEPS
    assert len(checkpoints) == NUM_STEPS // 2
    assert [json.loads((path / "trainer_state.json").read_text())["log_history"] for path in checkpoints] == [[]] * 3
