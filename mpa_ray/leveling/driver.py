"""The driver's side of leveling: one epoch over a student's parity samples on Ray Train."""

from __future__ import annotations

import threading
from typing import Any

import ray.train
from ray.train.torch import TorchTrainer

from mpa_ray.config import RunConfig, StudentConfig, resolve_path
from mpa_ray.errors import RunError
from mpa_ray.leveling.epoch_plan import Plan
from mpa_ray.leveling.trainer import TrainingJob, train
from mpa_ray.observability.progress import Progress, say
from mpa_ray.pipeline.cluster import check_resources
from mpa_ray.run.run import Run
from mpa_ray.tasks.task import Task


def fine_tune(
    run: Run, config: RunConfig, student: StudentConfig, name: str, task: Task, planned: Plan, folder: str, card: str
) -> None:
    """Fine-tune the student and export it below `folder`, with `check.json`; the user is told of it as `name`.

    Continues where a killed run left its last checkpoint.

    Raises:
        RunError: there is nothing to train on, training failed more often than `max_failures`, or too many images have
            gone.
    """
    settings, num_samples, num_too_long = student.level, planned.counts.num_samples, planned.counts.num_too_long
    if not num_samples:
        raise RunError(f"{name}: no samples to learn from; see the drop reasons in the report.")
    if num_too_long:
        say(
            f"WARNING: {num_too_long} samples are longer than level.max_tokens = {settings.max_tokens} and are left out"
        )
    check_resources(
        f"{name}: level.cpus_per_worker, level.gpus_per_worker", settings.cpus_per_worker, settings.gpus_per_worker
    )
    earlier = _training_so_far(run, folder)
    _check_images(run, folder, earlier, num_samples, config.limits.max_failed_rate)
    job = TrainingJob(
        model=resolve_path(student.model),
        object_store=config.object_store,
        task=task,
        level=settings,
        min_pixels=student.min_pixels,
        max_pixels=student.max_pixels,
        plan=planned,
        storage=run.storage,
        folder=folder,
        card=card,
        max_new_tokens=config.answer.max_new_tokens,
    )
    trainer = _trainer(job, run)
    with (
        Progress(f"level {name}", planned.num_steps, "steps", earlier["step"]) as progress,
        _Follow(run, folder, progress, earlier["step"]),
    ):
        try:
            trainer.fit()
        except ray.train.TrainingFailedError as error:
            raise RunError(f"{name}: training failed: {error}") from error
    training = _training_so_far(run, folder)
    _tell_of_retained(name, training)
    _check_images(run, folder, training, num_samples, config.limits.max_failed_rate)
    for resumed in training["resumed"][len(earlier["resumed"]) :]:
        repeated = max(0, resumed["had_reached"] - resumed["from_step"])
        say(
            f"level {name}: went on from step {resumed['from_step']} on {resumed['workers']} workers; "
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
            accelerator_type=settings.accelerator_type,
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


def _tell_of_retained(student: str, training: dict[str, Any]) -> None:
    retained = training["retained"]
    if not retained.get("before") or "after" not in retained:
        return
    say(
        f"level {student}: of {retained['num']} pairs that it answers and was not trained on, word for word "
        f"{retained['before']} before and {retained['after']} after"
    )


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
