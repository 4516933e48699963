"""What runs in each training worker: a thin `transformers.Trainer` fed by Ray Data, reporting to Ray Train."""

from __future__ import annotations

import json
import math
import os
import pickle
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.train
import torch
from ray.train.huggingface.transformers import prepare_trainer
from transformers import AutoModelForImageTextToText, Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint

from mpa_ray.checkpoints import local_model
from mpa_ray.config import LevelConfig, LoraConfig, ObjectStoreConfig
from mpa_ray.leveling.collator import AnswerCollator
from mpa_ray.leveling.scope import prepare_for_training
from mpa_ray.rendering import load_processor
from mpa_ray.store.storage import Storage
from mpa_ray.tasks.task import Task


@dataclass(frozen=True)
class TrainingJob:
    """Everything a worker has to know; the rows come from Ray Data."""

    model: str
    object_store: ObjectStoreConfig
    task: Task
    level: LevelConfig
    min_pixels: int
    max_pixels: int
    num_steps: int
    storage: Storage
    folder: str
    """Where in the run the student's files go."""


class ParityTrainer(Trainer):
    """`transformers.Trainer` with the loss normalised over all supervised tokens of an optimiser step."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        # Some families declare that they take no loss arguments; gradient accumulation then averages micro-batches of
        # unequal token counts as if they were equal.
        self.model_accepts_loss_kwargs = True


def write_down(job: TrainingJob, state: Any, num_unreadable: int | None = None) -> None:
    """Keep training.json at the state of the trainer: the driver's progress line and the report read it."""
    content = {
        "step": state.global_step,
        "num_steps": state.max_steps,
        "num_unreadable": num_unreadable,
        "log": state.log_history,
    }
    job.storage.write(f"{job.folder}/training.json", json.dumps(content).encode())


class ReportToRayTrain(TrainerCallback):
    """Give Ray Train each checkpoint, once: rank 0 uploads, the others only meet it at the barrier of `report`."""

    def __init__(self, job: TrainingJob) -> None:
        self._job = job

    def on_log(self, args: TrainingArguments, state: Any, *_: Any, **__: Any) -> None:  # noqa: ARG002
        losses = [row["loss"] for row in state.log_history if "loss" in row]
        if losses and not math.isfinite(losses[-1]):
            raise FloatingPointError(f"the loss is {losses[-1]} at step {state.global_step}: lower the learning rate")
        if state.is_world_process_zero:
            write_down(self._job, state)

    def on_save(self, args: TrainingArguments, state: Any, *_: Any, **__: Any) -> None:
        metrics = {"step": state.global_step}
        if not state.is_world_process_zero:
            ray.train.report(metrics)
            return
        saved = get_last_checkpoint(args.output_dir)
        assert saved is not None
        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(saved))
        shutil.rmtree(saved)


def train(job: TrainingJob) -> None:
    """Train for one epoch, from the last complete checkpoint where there is one, then export."""
    context = ray.train.get_context()
    on_gpu = torch.cuda.is_available()
    if not on_gpu:
        cores = len(os.sched_getaffinity(0))
        torch.set_num_threads(max(1, cores // context.get_local_world_size()))
        torch.set_flush_denormal(True)
    set_seed(job.level.seed)
    start = local_model(job.model, job.object_store)
    processor = load_processor(start)
    loaded_in = torch.bfloat16 if on_gpu and isinstance(job.level.method, LoraConfig) else torch.float32
    model = AutoModelForImageTextToText.from_pretrained(start, dtype=loaded_in)
    model = prepare_for_training(model, job.level.method)
    collator = AnswerCollator(processor, job.task, job.min_pixels, job.max_pixels)
    with tempfile.TemporaryDirectory() as scratch:
        trainer = prepare_trainer(
            ParityTrainer(
                model=model,
                args=_arguments(job, scratch, on_gpu),
                train_dataset=_batches(collator, job.level.micro_batch_size),
                callbacks=[ReportToRayTrain(job)],
            )
        )
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            trainer.train()
        else:
            with checkpoint.as_directory() as folder:
                trainer.train(resume_from_checkpoint=folder)
        num_unreadable = _sum_over_ranks(collator.num_unreadable)
        if context.get_world_rank() == 0:
            export(trainer.model, processor, job, Path(scratch))
            write_down(job, trainer.state, num_unreadable)


def _sum_over_ranks(count: int) -> int:
    total = torch.tensor(count)
    if torch.distributed.is_initialized():
        if torch.cuda.is_available():
            total = total.cuda()
        torch.distributed.all_reduce(total)
    return int(total)


def _arguments(job: TrainingJob, scratch: str, on_gpu: bool) -> TrainingArguments:
    level = job.level
    return TrainingArguments(
        output_dir=scratch,
        max_steps=job.num_steps,
        per_device_train_batch_size=level.micro_batch_size,
        gradient_accumulation_steps=level.batch_size // (level.micro_batch_size * level.num_workers),
        learning_rate=level.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=int(level.warmup_ratio * job.num_steps),
        weight_decay=level.weight_decay,
        max_grad_norm=level.max_grad_norm,
        logging_steps=5,
        save_steps=level.checkpoint_every_steps,
        save_strategy="steps",
        seed=level.seed,
        bf16=on_gpu,
        use_cpu=not on_gpu,
        remove_unused_columns=False,
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=on_gpu,
        ddp_find_unused_parameters=False,
    )


def _batches(collator: AnswerCollator, micro_batch_size: int) -> Any:
    def collate(batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        return collator([pickle.loads(row) for row in batch["row"]], list(batch["content"]))

    shard = ray.train.get_dataset_shard("train")
    return shard.iter_torch_batches(batch_size=micro_batch_size, collate_fn=collate, prefetch_batches=2)


def export(model: Any, processor: Any, job: TrainingJob, scratch: Path) -> None:
    """Write `adapter/` (with LoRA) and `merged/`, an ordinary Hugging Face checkpoint, into the run."""
    storage = job.storage
    if isinstance(job.level.method, LoraConfig):
        model.save_pretrained(scratch / "adapter")
        storage.put_folder(scratch / "adapter", f"{job.folder}/adapter")
        model = model.merge_and_unload()
    model.save_pretrained(scratch / "merged")
    processor.save_pretrained(scratch / "merged")
    storage.put_folder(scratch / "merged", f"{job.folder}/merged")
