"""The driver's side of leveling: one epoch over a student's training samples on Ray Train."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import Future
from contextvars import copy_context
from typing import Any

import ray
import ray.train
from ray.train.torch import TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mpa_ray.config import RunConfig, StudentConfig
from mpa_ray.errors import RunError, Unfinished
from mpa_ray.errors.remedies import what_continues
from mpa_ray.leveling.checkpoint_folders import drop_earlier, inherited_checkpoint
from mpa_ray.leveling.epoch_plan import EpochPlan
from mpa_ray.leveling.failures import ReportFailures, TrainingFailures
from mpa_ray.leveling.job import TrainingJob
from mpa_ray.leveling.worker import train
from mpa_ray.observability.last_words import in_words
from mpa_ray.observability.progress import Progress, say
from mpa_ray.pipeline.cluster import check_resources
from mpa_ray.pipeline.death_recorder import DeathRecorder
from mpa_ray.pipeline.machine import Need
from mpa_ray.records import EpochCounts
from mpa_ray.run.checkpoint_files import checkpoints_name
from mpa_ray.run.ownership import Ownership
from mpa_ray.run.phase_record import PhaseKey
from mpa_ray.run.run import Run
from mpa_ray.run.training_state import TrainingState
from mpa_ray.tasks.task import Task


def fine_tune(
    run: Run,
    config: RunConfig,
    student: StudentConfig,
    key: PhaseKey,
    task: Task,
    plan: EpochPlan,
    folder: str,
    cards: Mapping[bool, str],
    ownership: Ownership | None = None,
) -> None:
    """Fine-tune the student and export it below `folder`; training that was killed resumes from its last checkpoint.

    Args:
        run: The run.
        config: Its configuration.
        student: The student to train.
        key: The phase.
        task: Defines the prompts.
        plan: What the student is trained on.
        folder: The folder of the run for the files of this training.
        cards: The possible model cards of the export, see `TrainingJob.cards`.
        ownership: The right to train the student; None if no other command can train it.

    Raises:
        LostOwnership: another command has taken over the training.
        RunError: there is nothing to train on, training failed more often than `level.max_failures`, or more images
            than `limits.max_failed_rate` allows can no longer be read. The error is `Unfinished` if its cause may be
            temporary.
    """
    settings, label = student.level, key.label
    branch = f"{run.branch_of_student(student.name)}.level"
    _warn_of_left_out(label, branch, student, plan.counts)
    if not plan.counts.num_samples:
        raise RunError(f"{label}: there are no samples to train on; the report lists the reasons.")
    check_resources(Need.of_training(settings, branch))
    job = TrainingJob.of(run, config, student, task, plan, folder, cards, ownership)
    before = _state(job)
    _check_images(job, label, before, config.limits.max_failed_rate)
    if before.is_exported and run.storage.exists(f"{folder}/merged/config.json"):
        say(f"{label}: the student is already trained and exported")
        return
    if before.is_trained:
        say(f"{label}: the student is already trained; only its export is missing")
    drop_earlier(run.storage, folder, _owner_number(job), job.inherited)
    with Progress(label, plan.num_steps, "steps", before.step) as progress, _StepFollower(job, progress, before.step):
        _fit(job, key)
    number = _owner_number(job)
    # Keep only the checkpoint that the next owner would continue from, if the check of this export fails.
    drop_earlier(run.storage, folder, number, inherited_checkpoint(run.storage, folder, number + 1))
    after = _state(job)
    _say_results(label, before, after)
    _check_images(job, label, after, config.limits.max_failed_rate)


def _warn_of_left_out(label: str, branch: str, student: StudentConfig, counts: EpochCounts) -> None:
    if counts.num_too_long:
        max_tokens = student.level.max_tokens
        say(
            f"WARNING: {label}: {counts.num_too_long} samples are longer than {branch}.max_tokens = {max_tokens} and "
            "are left out"
        )
    if counts.num_with_special_token:
        say(
            f"WARNING: {label}: the questions of {counts.num_with_special_token} samples contain a special token of "
            f"{student.model}, and the samples are left out"
        )


def _fit(job: TrainingJob, key: PhaseKey) -> None:
    recorder = DeathRecorder(job.run.storage.root, job.reader.object_store, key)
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    failures = ray.remote(num_cpus=0, scheduling_strategy=here)(TrainingFailures).remote(recorder)
    try:
        _fit_in_thread(_torch_trainer(job, failures))
    except ray.train.TrainingFailedError as error:
        num_failures, cause = ray.get(failures.last_failure.remote())
        job.check_owner()
        attempts = f" in {num_failures} attempts; the last one failed with" if num_failures > 1 else ""
        what = "the student is trained, but its export failed" if _state(job).is_trained else "training failed"
        problem = f"{key.label}: {what}{attempts}: {cause or in_words(error)}"
        # The error was raised in another process, so its class is known only from the text.
        remedy = what_continues(problem)
        problem = f"{problem.rstrip('.')}. {remedy}".rstrip()
        raise Unfinished(problem) if remedy.may_pass else RunError(problem) from error
    ray.get(failures.last_failure.remote())


def _fit_in_thread(trainer: TorchTrainer) -> None:
    """Train in another thread.

    In the main thread, Ray Train would handle Ctrl-C and end the process with exit code 0.
    """
    done: Future[None] = Future()
    context = copy_context()

    def fit() -> None:
        try:
            context.run(trainer.fit)
        except BaseException as error:  # noqa: BLE001
            done.set_exception(error)
        else:
            done.set_result(None)

    threading.Thread(target=fit, daemon=True).start()
    done.result()


def _torch_trainer(job: TrainingJob, failures: Any) -> TorchTrainer:
    settings = job.level
    file_system, root = job.run.storage.arrow()
    resources = {"CPU": settings.cpus_per_worker}
    if settings.gpus_per_worker:
        resources["GPU"] = settings.gpus_per_worker
    return TorchTrainer(
        lambda: train(job, failures),
        scaling_config=ray.train.ScalingConfig(
            num_workers=settings.num_workers,
            use_gpu=settings.gpus_per_worker > 0,
            accelerator_type=settings.accelerator_type,
            resources_per_worker=resources,
        ),
        run_config=ray.train.RunConfig(
            # With the same name and path, Ray Train continues from the last reported checkpoint.
            name=checkpoints_name(_owner_number(job)),
            storage_path=f"{root}/{job.folder}",
            storage_filesystem=file_system,
            failure_config=ray.train.FailureConfig(max_failures=settings.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
            callbacks=[ReportFailures(failures)],
        ),
    )


def _owner_number(job: TrainingJob) -> int:
    return job.ownership.number if job.ownership is not None else 1


def _state(job: TrainingJob) -> TrainingState:
    return TrainingState.read(job.run, job.folder) or TrainingState()


def _check_images(job: TrainingJob, label: str, state: TrainingState, max_failed_rate: float) -> None:
    """Warn about samples that added nothing to the loss, because their images could no longer be read.

    Raises:
        RunError: there are too many such samples. Resuming would not help, because the checkpoints were trained without
            them.
    """
    num_samples = job.plan.counts.num_samples
    if not state.num_unreadable:
        return
    problem = f"{label}: the images of {state.num_unreadable} of {num_samples} samples could no longer be read"
    if state.num_changed:
        problem += f" (changed since the teacher saw them: {state.num_changed})"
    if state.num_unreadable > max_failed_rate * num_samples:
        raise RunError(
            f"{problem}, more than limits.max_failed_rate = {max_failed_rate} allows. Restore the source's files, "
            f"delete {job.run.storage.root}/{job.folder} and run again."
        )
    say(f"WARNING: {problem}, so the training left these samples out")


def _say_results(label: str, before: TrainingState, after: TrainingState) -> None:
    """Print how many retained pairs the student still answers, and how many times its training was resumed."""
    retained = after.retained
    # If there is a warning about forgetting, it contains the same numbers.
    if retained.before and retained.after is not None and retained.forgetting_warning() is None:
        say(
            f"{label}: the student answers {retained.after} of {retained.num} retained pairs word for word; it "
            f"answered {retained.before} before training"
        )
    for resumption in after.resumed[len(before.resumed) :]:
        say(
            f"{label}: resumed from step {resumption.from_step} on {resumption.workers} workers; "
            f"{resumption.num_repeated_steps} logged steps were repeated"
        )


class _StepFollower:
    """Advances a progress line to the last step that rank 0 has logged."""

    def __init__(self, job: TrainingJob, progress: Progress, step: int) -> None:
        self._job = job
        self._progress = progress
        self._step = step
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._advance()

    def _follow(self) -> None:
        while not self._ended.wait(1.0):
            self._advance()

    def _advance(self) -> None:
        state = _state(self._job)
        if state.step > self._step:
            samples_per_s = state.log.samples_per_s
            rate = None if samples_per_s is None else samples_per_s / self._job.level.batch_size
            self._progress.advance(state.step - self._step, rate)
            self._step = state.step
