"""The driver's side of leveling: one epoch over a student's parity samples on Ray Train."""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence
from typing import Any

import ray.train
from ray.train.torch import TorchTrainer

from mpa_ray.config import LevelConfig, RunConfig, StudentConfig, resolve_path
from mpa_ray.errors import RunError
from mpa_ray.flow import check_resources
from mpa_ray.leveling.epoch import TrainingRow, plan_epoch
from mpa_ray.leveling.trainer import Plan, TrainingJob, train
from mpa_ray.progress import Progress, say
from mpa_ray.records import ParitySample
from mpa_ray.store.run import Run
from mpa_ray.tasks.task import Task


def num_tokens(sample: ParitySample) -> int:
    """About how long a sample's row is: the prompt as identification measured it, and a token for 3 bytes of answer."""
    return sample.num_prompt_tokens + 2 + len(sample.answer.encode()) // 3


def plan(parity: Sequence[ParitySample], further: Sequence[ParitySample], level: LevelConfig) -> Plan:
    """The epoch over D_PI and what is mixed in, without the samples of D_PI that are held out."""
    held_out: list[ParitySample] = []
    if level.holdout is not None:
        count = min(level.holdout.max_samples, round(level.holdout.share * len(parity)))
        held_out = random.Random(f"{level.seed} held out").sample(sorted(parity, key=lambda s: s.annotation_id), count)
    left_out = {sample.annotation_id for sample in held_out}
    trained = [sample for sample in (*parity, *further) if sample.annotation_id not in left_out]
    epoch = plan_epoch(trained, num_tokens, level.batch_size, level.seed, level.max_tokens)
    return Plan(epoch, tuple(TrainingRow(sample, num_tokens(sample)) for sample in held_out))


def level(
    run: Run, config: RunConfig, student: StudentConfig, task: Task, planned: Plan, folder: str, card: str
) -> None:
    """Fine-tune the student and export it below `folder`, with `check.json`.

    Continues where a killed run left its last checkpoint.

    Raises:
        RunError: there is nothing to train on, training failed more often than `max_failures`, or too many images have
            gone.
    """
    settings, num_samples = student.level, planned.epoch.num_samples
    if not num_samples:
        raise RunError(f"{student.name}: no parity samples, so nothing to learn; see the drop reasons in the report.")
    if planned.epoch.num_too_long:
        say(f"WARNING: {planned.epoch.num_too_long} samples are longer than level.max_tokens = {settings.max_tokens} "
            "and are left out")  # fmt: skip
    check_resources(f"{student.name}: level.cpus_per_worker, level.gpus_per_worker", settings.cpus_per_worker,
                    settings.gpus_per_worker)  # fmt: skip
    earlier = _training_so_far(run, folder)
    _check_images(run, folder, earlier, num_samples, config.limits.max_failed_rate)
    job = TrainingJob(
        model=resolve_path(student.model),
        object_store=config.object_store,
        task=task,
        level=settings,
        min_pixels=student.min_pixels,
        max_pixels=student.max_pixels,
        plan=ray.put(planned),
        num_steps=len(planned.epoch.steps),
        storage=run.storage,
        folder=folder,
        card=card,
        max_new_tokens=config.answer.max_new_tokens,
    )
    trainer = _trainer(job, run)
    with (
        Progress(f"level {student.name}", job.num_steps, "steps", earlier["step"]) as progress,
        _Follow(run, folder, progress, earlier["step"]),
    ):
        try:
            trainer.fit()
        except ray.train.TrainingFailedError as error:
            raise RunError(f"{student.name}: training failed: {error}") from error
    training = _training_so_far(run, folder)
    _check_images(run, folder, training, num_samples, config.limits.max_failed_rate)
    for resumed in training["resumed"][len(earlier["resumed"]) :]:
        repeated = max(0, resumed["had_reached"] - resumed["from_step"])
        say(
            f"level {student.name}: went on from step {resumed['from_step']} on {resumed['workers']} workers; "
            f"{repeated} steps that were told of before were done again"
        )


def _trainer(job: TrainingJob, run: Run) -> TorchTrainer:
    settings = job.level
    file_system, root = run.storage.arrow()
    return TorchTrainer(
        lambda: train(job),
        scaling_config=ray.train.ScalingConfig(
            num_workers=settings.num_workers,
            use_gpu=settings.gpus_per_worker > 0,
            resources_per_worker={"CPU": settings.cpus_per_worker}
            | ({"GPU": settings.gpus_per_worker} if settings.gpus_per_worker else {}),
        ),
        run_config=ray.train.RunConfig(
            # The same name in the same place makes Ray Train continue from its last reported checkpoint.
            name="checkpoints",
            storage_path=f"{root}/{job.folder}",
            storage_filesystem=file_system,
            failure_config=ray.train.FailureConfig(max_failures=settings.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
        ),
    )


def _training_so_far(run: Run, folder: str) -> dict[str, Any]:
    path = f"{folder}/training.json"
    return run.read_json(path) if run.storage.exists(path) else {"step": 0, "num_unreadable": None, "resumed": []}


def _check_images(run: Run, folder: str, training: dict[str, Any], num_samples: int, max_failed_rate: float) -> None:
    """Samples whose images have gone since they were identified carry no loss: say so, and refuse a hollow training.

    A hollow training must not be continued either: what its checkpoints lack would never be made up for.
    """
    num_unreadable = training["num_unreadable"]
    if not num_unreadable:
        return
    told = f"{folder}: the images of {num_unreadable} of {num_samples} samples could no longer be read"
    if num_unreadable > max_failed_rate * num_samples:
        raise RunError(
            f"{told}, more than limits.max_failed_rate = {max_failed_rate}: restore the source's files, delete "
            f"{run.storage.root}/{folder} and run again."
        )
    say(f"WARNING: {told} and taught nothing.")


class _Follow:
    """Carries the step that rank 0 last wrote down over to the progress line."""

    def __init__(self, run: Run, folder: str, progress: Progress, seen: int) -> None:
        self._run, self._path, self._progress = run, f"{folder}/training.json", progress
        self._seen = seen
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep_looking, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._look()

    def _keep_looking(self) -> None:
        while not self._ended.wait(1.0):
            self._look()

    def _look(self) -> None:
        if self._run.storage.exists(self._path):
            step = self._run.read_json(self._path)["step"]
            if step > self._seen:
                self._progress.advance(step - self._seen)
                self._seen = step
