"""A thin `transformers.Trainer`: a training step is a whole optimiser step, and checkpoints go to Ray Train."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any

import ray.train
import torch
from torch.utils.data import DataLoader
from transformers import Trainer

from mpa_ray.leveling import checkpoint
from mpa_ray.leveling.collator import Batch
from mpa_ray.leveling.job import TrainingJob
from mpa_ray.leveling.loss import answer_loss
from mpa_ray.leveling.pace import Pace
from mpa_ray.leveling.parallel import check_parallel, sum_over_workers
from mpa_ray.leveling.step_data import Step, StepCounts, Steps
from mpa_ray.leveling.tensorboard import TensorBoard
from mpa_ray.leveling.trainable import parameter_groups
from mpa_ray.leveling.training_measurements import BestWeights, mean_loss, total_answered
from mpa_ray.run.checkpoint_files import write_checksums
from mpa_ray.run.training_log import LogEntry
from mpa_ray.run.training_state import Retained, TrainingState


@dataclass(frozen=True)
class TrainingData:
    """One worker's part of everything that training reads."""

    epoch: Steps
    held_out: Steps
    retained: Steps


class ParityTrainer(Trainer):
    """`transformers.Trainer` whose batch is a whole optimiser step, cut into micro-batches of similar length.

    For every model family, the loss is normalised over all supervised tokens (or samples) of the step on all workers.
    """

    optimizer: Any

    def __init__(self, job: TrainingJob, data: TrainingData, **settings: Any) -> None:
        super().__init__(train_dataset=data.epoch, **settings)
        self.best = BestWeights()
        self.num_unreadable = self.num_changed = 0
        """Counts over all workers and all attempts so far: samples whose images could not be read or have changed, and
        those among them whose images have changed."""
        self._job = job
        self._data = data
        self._pace = Pace(self.args.world_size)
        self._retained = Retained(len(job.plan.retained))
        self._saved_at = time.monotonic()
        self._checkpoint_is_due = False
        self._stored = TrainingState()
        """The content of training.json, which only rank 0 writes."""
        self._board: TensorBoard | None = None

    # A training step

    def get_train_dataloader(self) -> DataLoader[Step]:
        return DataLoader(self._data.epoch, batch_size=None)

    def get_batch_samples(self, epoch_iterator: Iterator[Step], *_: Any) -> tuple[list[Step], None]:
        """The next step, with its total weight over all workers."""
        step = next(epoch_iterator, None)
        if step is None:
            return [], None
        # The clock of rank 0 decides for all workers whether a checkpoint is due.
        is_due = time.monotonic() - self._saved_at > 60 * self._job.level.checkpoint_every_minutes
        counted = astuple(step.counts(self._job.level.reduction))
        *sums, is_due_sum = sum_over_workers(*counted, is_due and self.state.is_world_process_zero)
        counts = StepCounts(*map(int, sums))
        self._checkpoint_is_due = bool(is_due_sum)
        self.num_unreadable += counts.num_unreadable
        self.num_changed += counts.num_changed
        self._pace.add(counts, step.wait_s)
        return [replace(step, total_weight=max(counts.weight, 1))], None

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:  # noqa: ARG002
        model.train()
        total = torch.zeros((), device=self.args.device)
        for number, batch in enumerate(inputs.batches, 1):
            is_last = number == len(inputs.batches)
            with self._gradient_sync(model, is_last), self._pace.count_operations(batch):
                loss = self._loss(model, batch, inputs.total_weight)
                self.accelerator.backward(loss)
            total += loss.detach()
        self._schedule(self.state.global_step + 1)
        return total

    def _loss(self, model: Any, batch: Batch, total_weight: float) -> torch.Tensor:
        # The loss is a sum over the workers, but DDP and FSDP average its gradients: multiply by the number of workers.
        inputs = self._prepare_inputs(batch)
        return self.args.world_size * answer_loss(model, inputs, total_weight, self._job.level.reduction)

    def _gradient_sync(self, model: Any, is_last: bool) -> AbstractContextManager[None]:
        """Exchange gradients between the workers only in the last micro-batch of a step."""
        if hasattr(model, "set_requires_gradient_sync"):
            model.set_requires_gradient_sync(is_last)
            return nullcontext()
        return nullcontext() if is_last else self.accelerator.no_sync(model)

    def _schedule(self, step: int) -> None:
        """Decide, in the same way on all workers, whether a checkpoint and an evaluation follow this step."""
        level = self._job.level
        is_last = step == self.state.max_steps
        self.control.should_save |= self._checkpoint_is_due or is_last or step % level.checkpoint_every_steps == 0
        if level.holdout is not None and self._data.held_out.num_steps:
            self.control.should_evaluate |= is_last or step % level.holdout.every_steps == 0

    def create_optimizer(self, model: Any = None) -> Any:
        """AdamW with a learning rate for each component of the model."""
        if self.optimizer is None:
            level = self._job.level
            groups = parameter_groups(model or self.model, level.method, level.learning_rate)
            self.optimizer = torch.optim.AdamW(groups, weight_decay=level.weight_decay)
        return self.optimizer

    def floating_point_ops(self, inputs: Any) -> int:  # noqa: ARG002
        """Returns 0, because `Pace` counts the operations."""
        return 0

    # The log

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "train_runtime" in logs and self.state.global_step == self._initial_global_step:
            # An attempt that only exports runs no step, so its summary would show a loss of 0.
            return
        if "loss" in logs:
            if not math.isfinite(logs["loss"]):
                raise FloatingPointError(
                    f"the loss is {logs['loss']} at step {self.state.global_step}: lower the learning rate"
                )
            logs |= self._pace.measure()
        super().log(logs, start_time)
        entry = LogEntry.from_json(self.state.log_history[-1])
        # Otherwise, every checkpoint would store the whole history.
        self.state.log_history.clear()
        if self.state.is_world_process_zero:
            self._job.check_owner()
            self._stored = self._stored.logged(entry, self._job.run, self._job.folder)
            self.write_state()
            if self._board is not None:
                self._board.add(logs, self.state.global_step)

    def write_state(self, *, is_complete: bool = False) -> None:
        """Write training.json, which the driver's progress line, the status and the report read.

        Raises:
            LostOwnership: another command has taken over the training.
        """
        self._job.check_owner()
        self._stored = replace(
            self._stored,
            step=self.state.global_step,
            num_steps=self.state.max_steps,
            num_unreadable=self.num_unreadable if is_complete else None,
            num_changed=self.num_changed if is_complete else None,
            best_step=self.state.best_global_step,
            retained=self._retained,
        )
        self._stored.write(self._job.run, self._job.folder)

    def _begin_log(self, from_step: int) -> None:
        """Continue the stored log after `from_step`, the step of the checkpoint; 0 if there is no checkpoint."""
        run, folder = self._job.run, self._job.folder
        stored = TrainingState.read(run, folder)
        if stored is None and from_step:
            # The checkpoint is older than the first log entry.
            stored = TrainingState(step=from_step)
        if stored is not None:
            self._stored = stored.begin_attempt(from_step, self.args.world_size)
        if "tensorboard" in self._job.level.report_to:
            self._board = TensorBoard(run.storage, f"{folder}/tensorboard", self._stored.attempt, from_step + 1)

    # Retained pairs and held-out samples

    def measure_retained(self, *, is_trained: bool) -> None:
        """Count the retained pairs that the model answers, before or after training."""
        num = total_answered(self.model_wrapped, self._data.retained, self._prepare_inputs)
        self._retained = replace(self._retained, **{"after" if is_trained else "before": num})

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Measure the loss on the held-out samples, and keep the weights if the loss is the lowest so far."""
        holdout = self._job.level.holdout
        if holdout is None:
            raise ValueError("level.holdout = None: there are no samples to evaluate on")
        loss = mean_loss(self.model_wrapped, self._data.held_out, self._job.level.reduction, self._prepare_inputs)
        if self.best.update(loss, self.model_wrapped):
            self.state.best_global_step = self.state.global_step
            self.state.best_metric = loss
        if self._has_stopped_early:
            # Save a checkpoint of the last step, so that no step is repeated if the export fails.
            self.control.should_training_stop = self.control.should_save = True
        # Without this line, the Trainer would evaluate again after its last step.
        self.control.should_evaluate = False
        self.log({"eval_loss": loss})
        return {"eval_loss": loss}

    @property
    def _has_stopped_early(self) -> bool:
        holdout = self._job.level.holdout
        return holdout is not None and holdout.patience is not None and self.best.num_worse >= holdout.patience

    # Checkpoints

    def _save_checkpoint(self, model: Any, trial: Any) -> None:  # noqa: ARG002
        """Every worker writes and reports its own part; Ray Train accepts the checkpoint when all have reported."""
        folder = Path(str(self.args.output_dir), f"checkpoint-{self.state.global_step}")
        folder.mkdir(parents=True)
        checkpoint.save(folder, model, self.optimizer.optimizer, self.lr_scheduler, self.best.weights)
        self._save_rng_state(str(folder))
        if self.state.is_world_process_zero:
            self.state.save_to_json(str(folder / "trainer_state.json"))
            self._progress().save(folder)
        write_checksums(folder, self.args.process_index)
        self._job.check_owner()
        ray.train.report({"step": self.state.global_step}, checkpoint=ray.train.Checkpoint.from_directory(folder))
        shutil.rmtree(folder)
        self._saved_at = time.monotonic()

    def _progress(self) -> checkpoint.TrainingProgress:
        return checkpoint.TrainingProgress(
            num_unreadable=self.num_unreadable,
            num_changed=self.num_changed,
            num_retained_before=self._retained.before,
            best_loss=self.best.loss,
            num_worse=self.best.num_worse,
            has_best=bool(self.best.weights),
        )

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Do nothing. `_load_optimizer_and_scheduler` loads the weights later, when the model is wrapped or sharded."""

    def _load_optimizer_and_scheduler(self, resume_from: str | None) -> None:
        if resume_from is None:
            return
        folder = Path(resume_from)
        progress = checkpoint.TrainingProgress.load(folder)
        self.num_unreadable, self.num_changed = progress.num_unreadable, progress.num_changed
        self._retained = replace(self._retained, before=progress.num_retained_before)
        self.best.loss = progress.best_loss
        self.best.num_worse = progress.num_worse
        self.best.weights = checkpoint.load(
            folder, self.model_wrapped, self.optimizer.optimizer, self.lr_scheduler, progress.has_best
        )
        epoch = self._data.epoch
        epoch.first = epoch.num_steps if self._has_stopped_early else self.state.global_step

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None) -> Any:
        prepared = super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        check_parallel(self.model_wrapped, self._job.level.parallel, self.args.world_size)
        if self.state.is_world_process_zero:
            self._begin_log(self.state.global_step)
        if resume_from_checkpoint is None:
            self.measure_retained(is_trained=False)
        return prepared
