"""A trainer of a tiny model, for tests of what a training writes into its run."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import cast

from torch import nn

from mpa_ray.config import LevelConfig
from mpa_ray.leveling.job import TrainingJob
from mpa_ray.leveling.trainer import ParityTrainer, TrainingData
from mpa_ray.leveling.worker import training_arguments
from mpa_ray.run.run import Run

FOLDER = "students/s/parity"


def trainer_of(
    run: Run, scratch: str, folder: str = FOLDER, check_owner: Callable[[], None] = lambda: None
) -> ParityTrainer:
    """A trainer of a job whose epoch has 50,000 steps."""
    plan = SimpleNamespace(num_steps=50_000, retained=())
    job = SimpleNamespace(plan=plan, level=LevelConfig(), run=run, folder=folder, check_owner=check_owner)
    data = cast(TrainingData, SimpleNamespace(epoch=[], held_out=[], retained=[]))
    arguments = training_arguments(cast(TrainingJob, job), scratch, on_gpu=False)
    return ParityTrainer(cast(TrainingJob, job), data, model=nn.Linear(1, 1), args=arguments)
