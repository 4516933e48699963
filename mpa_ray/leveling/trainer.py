"""What runs in each training worker: a thin `transformers.Trainer` fed by Ray Data, reporting to Ray Train."""

from __future__ import annotations

import json
import math
import os
import pickle
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import psutil
import ray
import ray.train
import torch
from tensorboardX import SummaryWriter
from torch.utils.data import DataLoader, IterableDataset
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForImageTextToText, Trainer, TrainingArguments, set_seed

from mpa_ray.config import LevelConfig, LoraConfig, ObjectStoreConfig
from mpa_ray.corpus.read import Reader
from mpa_ray.leveling import checkpoint
from mpa_ray.leveling.batching import MicroBatch, TrainingRow, micro_batches
from mpa_ray.leveling.epoch_plan import Plan
from mpa_ray.leveling.export import Check, export, take_over
from mpa_ray.leveling.loss import IGNORED_LABEL, answer_loss, num_answered, weight_of
from mpa_ray.leveling.parallel import check_parallel, shard
from mpa_ray.leveling.step_data import AnswerCollator
from mpa_ray.leveling.trainable import learning_rates, prepare_for_training
from mpa_ray.models.chat_template import load_processor
from mpa_ray.models.checkpoints import local_model
from mpa_ray.models.components import component_of
from mpa_ray.models.gpus import peak_tflops
from mpa_ray.observability.log_context import log_context
from mpa_ray.pipeline.training_data import steps_with_images
from mpa_ray.storage.storage import Storage
from mpa_ray.tasks.task import Task

_LOG_EVERY_STEPS = 5
_PROGRESS = "progress.json"
_NUM_CHECKED = 8
"""Questions that an exported checkpoint is tried on."""

Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class TrainingJob:
    """Everything that a worker has to know."""

    model: str
    object_store: ObjectStoreConfig
    task: Task
    level: LevelConfig
    min_pixels: int
    max_pixels: int
    plan: Plan
    storage: Storage
    folder: str
    """Where in the run the student's files go."""
    card: str
    """What the exported checkpoint's README says."""
    max_new_tokens: int
    """Of an answer."""


@dataclass(frozen=True)
class Step:
    """One optimiser step of this worker."""

    batches: list[Batch]
    num_unreadable: int
    """Rows that carry no loss, since their images are gone."""
    wait_s: float = 0.0
    """For which its data kept the worker waiting."""
    total_weight: float = 0.0
    """Of all workers' micro-batches; see `weight_of`."""


@dataclass(frozen=True)
class Share:
    """Which part of each step a worker has."""

    token_budget: int
    rank: int
    num_workers: int

    def of(self, step: Sequence[TrainingRow]) -> list[MicroBatch]:
        return micro_batches(step, self.token_budget, self.num_workers)[self.rank]


class Steps(IterableDataset[Step]):
    """This worker's share of an epoch from a step on, its images read and rendered ahead in threads."""

    def __init__(
        self,
        num_steps: int,
        rows: Callable[[int, int], Iterable[Sequence[TrainingRow]]],
        batch_size: int,
        share: Share,
        collator: AnswerCollator,
        reader: Reader,
    ) -> None:
        self.num_steps, self._rows, self._num_rows = num_steps, rows, max(1, batch_size // share.num_workers)
        self._share, self._collator, self._reader = share, collator, reader
        self.first = 0

    def __iter__(self) -> Iterator[Step]:
        rows, share = self._rows, self._share

        def steps(first: int, last: int) -> Iterator[list[MicroBatch]]:
            return (share.of(step) for step in rows(first, last))

        images = steps_with_images(self.num_steps, self.first, steps, self._num_rows, self._reader)
        ready: Iterator[Any] = iter(
            images.iter_torch_batches(batch_size=1, collate_fn=self._collate, prefetch_batches=1)
        )
        while True:
            started = time.monotonic()
            found = next(ready, None)
            if found is None:
                return
            yield replace(found, wait_s=time.monotonic() - started)

    def _collate(self, rows: dict[str, Any]) -> Step:
        # Of this thread alone; more of them would spin on the cores that the model computes on.
        torch.set_num_threads(1)
        (step,), (contents,) = rows["step"], rows["contents"]
        left, asked = iter(pickle.loads(contents)), pickle.loads(step)
        batches = [self._collator(batch, list(islice(left, len(batch)))) for batch in asked]
        num_supervised = sum(row.supervised for batch in asked for row in batch)
        return Step(batches, num_supervised - sum(weight_of(batch["labels"], "sample") for batch in batches))


class ParityTrainer(Trainer):
    """`transformers.Trainer` whose batch is a whole optimiser step, cut into micro-batches of like length.

    The loss is normalised over the supervised tokens (or samples) of the step, on all workers, for every family.
    """

    def __init__(
        self, job: TrainingJob, steps: Steps, held_out: Steps, retained: Steps, collator: AnswerCollator, **rest: Any
    ) -> None:
        super().__init__(train_dataset=steps, **rest)
        self._job, self._steps, self._collator = job, steps, collator
        self._held_out, self._retained = held_out, retained
        self._pace = dict.fromkeys(("supervised_tokens", "samples", "tokens", "padded_tokens", "wait_s"), 0.0)
        self._logged_at = self._saved_at = time.monotonic()
        self._is_due = False
        self._board: Any = None
        if "tensorboard" in job.level.report_to and self.is_world_process_zero():
            self._board = SummaryWriter(f"{self.args.output_dir}/tensorboard")
        self.num_unreadable = 0
        """On all workers, over all attempts."""
        self.best: dict[str, Any] = {}
        self._best_loss, self._num_worse = math.inf, 0
        self._resumed: list[dict[str, int]] = []
        self._answered: dict[str, int] = {}
        self._flops_per_token: float | None = None

    # What a step is made of

    def get_train_dataloader(self) -> DataLoader[Step]:
        return DataLoader(self._steps, batch_size=None)

    def get_batch_samples(self, epoch_iterator: Iterator[Step], *_: Any) -> tuple[list[Step], None]:
        """The next step, with what it weighs on all workers."""
        step = next(epoch_iterator, None)
        if step is None:
            return [], None
        is_due = time.monotonic() - self._saved_at > 60 * self._job.level.checkpoint_every_minutes
        supervised = [batch["labels"][:, 1:] != IGNORED_LABEL for batch in step.batches]
        weight, tokens, samples, computed, padded, lost, due = self._sums(
            sum(weight_of(batch["labels"], self._job.level.reduction) for batch in step.batches),
            sum(int(found.sum()) for found in supervised),
            sum(int(found.any(dim=1).sum()) for found in supervised),
            sum(int(batch["attention_mask"].sum()) for batch in step.batches),
            sum(batch["attention_mask"].numel() for batch in step.batches),
            step.num_unreadable,
            float(is_due and self.state.is_world_process_zero),
        )
        self.num_unreadable += int(lost)
        self._is_due = bool(due)
        for name, value in (
            ("supervised_tokens", tokens),
            ("samples", samples),
            ("tokens", computed),
            ("padded_tokens", padded),
            ("wait_s", step.wait_s),
        ):
            self._pace[name] += value
        return [replace(step, total_weight=max(weight, 1.0))], None

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:  # noqa: ARG002
        model.train()
        total = torch.zeros((), device=self.args.device)
        for number, batch in enumerate(inputs.batches, 1):
            is_last = number == len(inputs.batches)
            with self._apart(model, is_last), self._counted(batch):
                loss = self._loss(model, batch, inputs.total_weight)
                self.accelerator.backward(loss)
            total += loss.detach()
        self._decide(self.state.global_step + 1)
        return total

    @contextmanager
    def _counted(self, batch: Batch) -> Iterator[None]:
        """Count the operations of the first micro-batch, forwards and backwards."""
        if self._flops_per_token is not None:
            yield
            return
        with FlopCounterMode(display=False) as counter:
            yield
        self._flops_per_token = counter.get_total_flops() / batch["attention_mask"].numel()

    def _decide(self, step: int) -> None:
        """What follows the step; all workers decide alike."""
        level, is_last = self._job.level, step == self.state.max_steps
        self.control.should_save |= self._is_due or is_last or step % level.checkpoint_every_steps == 0
        if level.holdout is not None and self._held_out.num_steps:
            self.control.should_evaluate |= is_last or step % level.holdout.every_steps == 0

    def _loss(self, model: Any, batch: Batch, total_weight: float) -> torch.Tensor:
        # Gradients are averaged over the workers; here every worker has a part of one sum.
        inputs = self._prepare_inputs(batch)
        return self.args.world_size * answer_loss(model, inputs, total_weight, self._job.level.reduction)

    def _apart(self, model: Any, is_last: bool) -> Any:
        """Gradients meet once a step."""
        if hasattr(model, "set_requires_gradient_sync"):
            model.set_requires_gradient_sync(is_last)
            return nullcontext()
        return nullcontext() if is_last else self.accelerator.no_sync(model)

    def _sums(self, *values: float) -> list[float]:
        total = torch.tensor(values, dtype=torch.float64, device="cpu" if self.args.use_cpu else "cuda")
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(total)
        return [float(value) for value in total]

    optimizer: Any

    def create_optimizer(self, model: Any = None) -> Any:
        """Each part of the model with a rate of its own."""
        if self.optimizer is None:
            rates = learning_rates(self._job.level.method, self._job.level.learning_rate)
            groups: dict[str, list[Any]] = {}
            for name, parameter in (model or self.model).named_parameters():
                if parameter.requires_grad:
                    groups.setdefault(component_of(name), []).append(parameter)
            self.optimizer = torch.optim.AdamW(
                [{"params": found, "lr": rates[part]} for part, found in groups.items()],  # type: ignore[index]
                weight_decay=self._job.level.weight_decay,
            )
        return self.optimizer

    def floating_point_ops(self, inputs: Any) -> int:  # noqa: ARG002
        return 0

    # What is told

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and not math.isfinite(logs["loss"]):
            raise FloatingPointError(
                f"the loss is {logs['loss']} at step {self.state.global_step}: lower the learning rate"
            )
        if "loss" in logs:
            logs |= self._speed()
        super().log(logs, start_time)
        if self.state.is_world_process_zero:
            self.write_down()
            if self._board is not None:
                for name, value in logs.items():
                    self._board.add_scalar(name, value, self.state.global_step)
                self._board.flush()
                self._job.storage.put_folder(Path(self._board.logdir), f"{self._job.folder}/tensorboard")

    def _speed(self) -> dict[str, float]:
        now = time.monotonic()
        took, self._logged_at = now - self._logged_at, now
        pace, self._pace = self._pace, dict.fromkeys(self._pace, 0.0)
        tflops = (self._flops_per_token or 0.0) * pace["padded_tokens"] / took / self.args.world_size / 1e12
        peak = None if self.args.use_cpu else peak_tflops(torch.cuda.get_device_name())
        memory = psutil.Process().memory_info().rss if self.args.use_cpu else torch.cuda.max_memory_allocated()
        return {
            "samples_per_s": pace["samples"] / took,
            "supervised_tokens_per_s": pace["supervised_tokens"] / took,
            "tokens_per_s": pace["tokens"] / took,
            "padding_share": 1 - pace["tokens"] / pace["padded_tokens"] if pace["padded_tokens"] else 0.0,
            "data_wait_share": pace["wait_s"] / took,
            "memory_gib": memory / 2**30,
            "tflops_per_s": tflops,
            **({"mfu": tflops / peak} if peak else {}),
        }

    def write_down(self, num_unreadable: int | None = None) -> None:
        """Keep training.json at the state of the trainer: the driver's progress line and the report read it."""
        content = {
            "step": self.state.global_step,
            "num_steps": self.state.max_steps,
            "num_unreadable": num_unreadable,
            "best_step": self.state.best_global_step,
            "retained": {"num": len(self._job.plan.retained), **self._answered},
            "resumed": self._resumed,
            "log": self.state.log_history,
        }
        self._job.storage.write(f"{self._job.folder}/training.json", json.dumps(content).encode())

    # The samples that are watched

    def watch_retained(self, when: Literal["before", "after"]) -> None:
        """Count the pairs of those that it answered before which the model answers now."""
        model = self.model_wrapped.eval()
        with torch.no_grad():
            found = sum(
                num_answered(model, self._prepare_inputs(batch)) for step in self._retained for batch in step.batches
            )
        (total,) = self._sums(found)
        self._answered[when] = int(total)

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        model, level = self.model_wrapped, self._job.level
        assert level.holdout is not None
        model.eval()
        found = weight = 0.0
        with torch.no_grad():
            for step in self._held_out:
                for batch in step.batches:
                    found += float(answer_loss(model, self._prepare_inputs(batch), 1.0, level.reduction))
                    weight += weight_of(batch["labels"], level.reduction)
        found, weight = self._sums(found, weight)
        loss = found / max(weight, 1.0)
        if loss < self._best_loss:
            self._best_loss, self._num_worse = loss, 0
            self.state.best_global_step, self.state.best_metric = self.state.global_step, loss
            self.best = checkpoint.trainable(model)
        else:
            self._num_worse += 1
        if level.holdout.patience is not None and self._num_worse >= level.holdout.patience:
            self.control.should_training_stop = True
        self.log({"eval_loss": loss})
        return {"eval_loss": loss}

    # Checkpoints

    def _save_checkpoint(self, model: Any, trial: Any) -> None:  # noqa: ARG002
        """Every worker writes and reports its own part; Ray Train takes the whole for valid once all have."""
        assert self.args.output_dir is not None
        folder = Path(self.args.output_dir, f"checkpoint-{self.state.global_step}")
        folder.mkdir(parents=True)
        checkpoint.save(folder, model, self.optimizer.optimizer, self.lr_scheduler, self.best)  # type: ignore[union-attr]
        self._save_rng_state(str(folder))
        if self.state.is_world_process_zero:
            self.state.save_to_json(str(folder / "trainer_state.json"))
            progress = {
                "num_unreadable": self.num_unreadable,
                "answered": self._answered,
                "best_loss": self._best_loss,
                "num_worse": self._num_worse,
                "has_best": bool(self.best),
            }
            (folder / _PROGRESS).write_text(json.dumps(progress))
        ray.train.report({"step": self.state.global_step}, checkpoint=ray.train.Checkpoint.from_directory(folder))
        shutil.rmtree(folder)
        self._saved_at = time.monotonic()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Nothing yet: weights come with the optimizer's state, once the model is wrapped or sharded."""

    def _load_optimizer_and_scheduler(self, resume_from: str | None) -> None:
        if resume_from is None:
            return
        progress = json.loads(Path(resume_from, _PROGRESS).read_text())
        self.num_unreadable, self._best_loss = progress["num_unreadable"], progress["best_loss"]
        self._num_worse, self._answered = progress["num_worse"], progress["answered"]
        self.best = checkpoint.load(
            Path(resume_from),
            self.model_wrapped,
            self.optimizer.optimizer,  # type: ignore[union-attr]
            self.lr_scheduler,
            progress["has_best"],
        )
        self._steps.first = self.state.global_step
        if self.state.is_world_process_zero:
            path, step = f"{self._job.folder}/training.json", self.state.global_step
            # A checkpoint may be older than the first log.
            told = self._job.storage.read(path) if self._job.storage.exists(path) else b"{}"
            earlier = {"resumed": [], "step": step, **json.loads(told)}
            now = {"from_step": step, "had_reached": earlier["step"], "workers": self.args.world_size}
            self._resumed = [*earlier["resumed"], now]

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None) -> Any:
        prepared = super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        check_parallel(self.model_wrapped, self._job.level.parallel, self.args.world_size)
        if resume_from_checkpoint is None:
            self.watch_retained("before")
        return prepared


def train(job: TrainingJob) -> None:
    """Train for one epoch, from the last complete checkpoint where there is one, then export."""
    with log_context(run=job.storage.root, phase="level", student=job.folder.split("/")[1]):
        _train(job)


def _train(job: TrainingJob) -> None:
    context = ray.train.get_context()
    on_gpu = torch.cuda.is_available()
    if not on_gpu:
        cores = len(os.sched_getaffinity(0))
        torch.set_num_threads(max(1, cores // context.get_local_world_size()))
        torch.set_flush_denormal(True)
    set_seed(job.level.seed)
    start = local_model(job.model, job.object_store)
    processor = load_processor(start)
    model = prepare_for_training(load_model(start, job.level, on_gpu), job.level.method)
    if job.level.parallel == "fsdp" and context.get_world_size() > 1:
        model = shard(model, on_gpu)
    collator = AnswerCollator(processor, job.task, job.min_pixels, job.max_pixels)
    share = Share(job.level.tokens_per_micro_batch, context.get_world_rank(), context.get_world_size())
    size, reader = job.level.batch_size, Reader(job.object_store)

    def watched(rows: Sequence[TrainingRow]) -> Steps:
        chunks = [rows[at : at + size] for at in range(0, len(rows), size)]
        return Steps(len(chunks), lambda first, last: chunks[first:last], size, share, collator, reader)

    plan = job.plan
    with tempfile.TemporaryDirectory() as scratch:
        trainer = ParityTrainer(
            job,
            Steps(plan.num_steps, plan.steps, size, share, collator, reader),
            watched(plan.held_out),
            watched(plan.retained),
            collator,
            model=model,
            args=_arguments(job, scratch, on_gpu),
        )
        found = ray.train.get_checkpoint()
        if found is None:
            trainer.train()
        else:
            with found.as_directory() as folder:
                trainer.train(resume_from_checkpoint=folder)
        if trainer.best:
            checkpoint.restore(trainer.model_wrapped, trainer.best)
        trainer.watch_retained("after")
        weights = checkpoint.whole(trainer.model_wrapped)
        if context.get_world_rank() == 0:
            fresh = prepare_for_training(load_model(start, job.level, on_gpu, quantized=False), job.level.method)
            asked = next(plan.steps(0, 1))[:_NUM_CHECKED]
            contents = reader.read([row.uri for row in asked])
            check = Check(
                asked,
                [c if isinstance(c, bytes) else b"" for c in contents],
                job.task,
                (job.min_pixels, job.max_pixels),
                job.max_new_tokens,
            )
            export(take_over(fresh, weights), processor, job.model, job.level, job.storage, job.folder, job.card, check)
            trainer.write_down(trainer.num_unreadable)


def load_model(start: str, level: LevelConfig, on_gpu: bool, quantized: bool = True) -> Any:
    """The checkpoint in the number format that it is trained in."""
    settings: dict[str, Any] = {}
    if level.attention != "auto":
        settings["attn_implementation"] = level.attention
    is_lora = isinstance(level.method, LoraConfig)
    if quantized and isinstance(level.method, LoraConfig) and level.method.quantize:
        from transformers import BitsAndBytesConfig

        settings["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
        )
    loaded_in = torch.bfloat16 if on_gpu and is_lora else torch.float32
    return AutoModelForImageTextToText.from_pretrained(start, dtype=loaded_in, **settings)


def _arguments(job: TrainingJob, scratch: str, on_gpu: bool) -> TrainingArguments:
    level = job.level
    return TrainingArguments(
        output_dir=scratch,
        max_steps=job.plan.num_steps,
        # A batch of the Trainer is a whole step of ours.
        per_device_train_batch_size=1,
        gradient_accumulation_steps=1,
        learning_rate=level.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=int(level.warmup_ratio * job.plan.num_steps),
        max_grad_norm=level.max_grad_norm,
        logging_steps=_LOG_EVERY_STEPS,
        logging_nan_inf_filter=False,
        save_strategy="no",
        eval_strategy="no",
        # Every worker begins at the step behind the checkpoint by itself.
        ignore_data_skip=True,
        seed=level.seed,
        bf16=on_gpu,
        use_cpu=not on_gpu,
        gradient_checkpointing=level.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        remove_unused_columns=False,
        report_to=[service for service in level.report_to if service != "tensorboard"],
        disable_tqdm=True,
        dataloader_pin_memory=False,
        ddp_find_unused_parameters=False,
    )
