"""The rows of `benchmarks.gpu.leveling`: `python -m benchmarks.gpu.leveling_rows ROW FOLDER`, one in each process."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForImageTextToText, Trainer, TrainerCallback, TrainingArguments, set_seed

from benchmarks.gpu.leveling import TASK, Work
from benchmarks.gpu.measuring import GpuMonitor, timed
from mpa_ray.config import FullConfig, LevelConfig, LoraConfig, RunConfig
from mpa_ray.leveling.arms import SampleSources
from mpa_ray.leveling.batching import TrainingRow
from mpa_ray.leveling.collator import AnswerCollator, Batch
from mpa_ray.leveling.driver import fine_tune
from mpa_ray.leveling.epoch_plan import EpochPlan, plan_epoch
from mpa_ray.leveling.job import TrainingJob
from mpa_ray.leveling.loss import IGNORED_LABEL, answer_loss
from mpa_ray.leveling.trainable import prepare_for_training
from mpa_ray.leveling.trainer import ParityTrainer
from mpa_ray.leveling.worker import load_model, training_arguments, training_data
from mpa_ray.models.chat_template import load_processor
from mpa_ray.models.gpus import peak_tflops
from mpa_ray.pipeline.cluster import start_ray
from mpa_ray.run.phase_record import PhaseKey
from mpa_ray.run.run import Run
from mpa_ray.run.training_log import LogEntry, TrainingLog
from mpa_ray.run.training_state import TrainingState

LOG_EVERY_STEPS = 5
"""How often leveling logs its speed, and how often the plain Trainer's counts are kept."""
NUM_COUNTED_SAMPLES = 4
"""Samples of the micro-batch whose operations are counted for the plain Trainer."""


@dataclass(frozen=True)
class Speed:
    """How fast a row trained, without its first steps."""

    samples_per_s: float
    tokens_per_s: float
    supervised_tokens_per_s: float
    padding_share: float
    """Padding among the tokens that the model computed."""
    tflops_per_s: float
    mfu: float | None
    """Operations as a share of the GPU's peak, padding included; None if there is no GPU or its peak is not known."""
    mfu_without_padding: float | None
    memory_gib: float | None
    """Peak memory of the GPU. Without one, the resident memory of leveling, and None for the plain Trainer."""
    measured_s: float
    data_wait_share: float | None
    """Share of the time in which training waited for data; None for the plain Trainer, which does not measure it."""


@dataclass(frozen=True)
class Measurement:
    """The results of a row, and when it trained, by `time.monotonic()`."""

    speed: Speed
    started_s: float
    ended_s: float
    log: Sequence[LogEntry] = field(default_factory=tuple)


def level_config(row: str, work: Work, longest: int) -> LevelConfig:
    """The settings of a row; `longest` is the length of the longest sample in tokens."""
    method = LoraConfig(rank=16) if row.endswith("lora") else FullConfig(kind="full")
    return LevelConfig.model_validate(
        {
            "method": method.model_dump(),
            "learning_rate": 1e-5,
            "batch_size": work.batch_size,
            "tokens_per_micro_batch": work.micro_batch_of(row) * longest,
            "report_to": (),
            "retained_samples": 0,
            "checkpoint_every_steps": 10_000,
            "gpus_per_worker": 1.0 if torch.cuda.is_available() else 0.0,
            "max_failures": 0,
            "attention": work.attention,
        }
    )


# --- the plain Trainer -----------------------------------------------------------------------------------------------


@dataclass
class Counts:
    """What the plain Trainer has computed so far."""

    tokens: int = 0
    computed_tokens: int = 0
    """The same with padding."""
    supervised_tokens: int = 0

    def add(self, batch: Batch) -> None:
        self.tokens += int(batch["attention_mask"].sum())
        self.computed_tokens += batch["attention_mask"].numel()
        self.supervised_tokens += int((batch["labels"][:, 1:] != IGNORED_LABEL).sum())


@dataclass(frozen=True)
class Mark:
    """The counts at the end of a step."""

    step: int
    at_s: float
    counts: Counts


class CountingTrainer(Trainer):
    """The plain Trainer, which also counts tokens."""

    def __init__(self, counts: Counts, **settings: Any) -> None:
        super().__init__(**settings)
        self._counts = counts

    def training_step(self, model: Any, inputs: Any, *rest: Any) -> torch.Tensor:
        self._counts.add(inputs)
        return super().training_step(model, inputs, *rest)


class MarkingCallback(TrainerCallback):
    """Keeps the counts every few steps, when the GPU has finished the step."""

    def __init__(self, counts: Counts) -> None:
        self.marks: list[Mark] = []
        self._counts = counts

    def on_step_end(self, args: Any, state: Any, *_: Any, **__: Any) -> None:  # noqa: ARG002
        if state.global_step % LOG_EVERY_STEPS == 0:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.marks.append(Mark(state.global_step, time.monotonic(), Counts(**asdict(self._counts))))


def train_plainly(row: str, work: Work) -> Measurement:
    on_gpu, level = torch.cuda.is_available(), level_config(row, work, longest=1)
    set_seed(0)
    collator = AnswerCollator(load_processor(work.model), TASK, *work.pixel_limits)
    dtype = torch.bfloat16 if on_gpu and row.endswith("lora") else torch.float32
    model = prepare_for_training(AutoModelForImageTextToText.from_pretrained(work.model, dtype=dtype), level.method)
    model = model.to("cuda" if on_gpu else "cpu")

    def collate(rows: Sequence[TrainingRow]) -> Batch:
        return collator(rows, [Path(row.uri).read_bytes() for row in rows])

    rows = [TrainingRow(sample, 0) for sample in work.samples()]
    flops_per_token = count_flops_per_token(model, collate(rows[:NUM_COUNTED_SAMPLES]))
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    counts = Counts()
    callback = MarkingCallback(counts)
    with tempfile.TemporaryDirectory() as scratch:
        trainer = CountingTrainer(
            counts,
            model=model,
            train_dataset=rows,
            data_collator=collate,
            callbacks=[callback],
            args=plain_arguments(row, work, level, scratch),
        )
        trainer.train()
    return plain_measurement(callback.marks, work.batch_size, flops_per_token)


def plain_arguments(row: str, work: Work, level: LevelConfig, scratch: str) -> TrainingArguments:
    on_gpu, micro_batch = torch.cuda.is_available(), work.micro_batch_of(row)
    return TrainingArguments(
        output_dir=scratch,
        num_train_epochs=1,
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=work.batch_size // micro_batch,
        learning_rate=level.learning_rate,
        lr_scheduler_type="linear",
        max_grad_norm=level.max_grad_norm,
        save_strategy="no",
        bf16=on_gpu,
        use_cpu=not on_gpu,
        remove_unused_columns=False,
        report_to=[],
        disable_tqdm=True,
        logging_strategy="no",
        seed=0,
        dataloader_num_workers=work.num_loaders,
        dataloader_pin_memory=on_gpu,
    )


def count_flops_per_token(model: Any, batch: Batch) -> float:
    """Operations of one micro-batch, forward and backward, for each of its tokens, padding included."""
    device = next(model.parameters()).device
    inputs = {name: tensor.to(device) for name, tensor in batch.items()}
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")
    with FlopCounterMode(display=False) as counter, autocast:
        answer_loss(model, inputs, 1.0, "token").backward()
    model.zero_grad()
    return float(counter.get_total_flops() / batch["attention_mask"].numel())


def plain_measurement(marks: Sequence[Mark], batch_size: int, flops_per_token: float) -> Measurement:
    """The speed between the first mark and the last."""
    first, last = marks[0], marks[-1]
    measured_s = last.at_s - first.at_s
    num_tokens = last.counts.tokens - first.counts.tokens
    num_computed = last.counts.computed_tokens - first.counts.computed_tokens
    tflops_per_s = flops_per_token * num_computed / measured_s / 1e12
    mfu = mfu_of(tflops_per_s)
    speed = Speed(
        samples_per_s=batch_size * (last.step - first.step) / measured_s,
        tokens_per_s=num_tokens / measured_s,
        supervised_tokens_per_s=(last.counts.supervised_tokens - first.counts.supervised_tokens) / measured_s,
        padding_share=1 - num_tokens / num_computed,
        tflops_per_s=tflops_per_s,
        mfu=mfu,
        mfu_without_padding=mfu * num_tokens / num_computed if mfu else None,
        memory_gib=torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None,
        measured_s=measured_s,
        data_wait_share=None,
    )
    return Measurement(speed, first.at_s, last.at_s)


def mfu_of(tflops_per_s: float) -> float | None:
    peak = peak_tflops(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
    return tflops_per_s / peak if peak else None


# --- leveling --------------------------------------------------------------------------------------------------------


def plan(row: str, work: Work, run_dir: str) -> tuple[Run, RunConfig, EpochPlan]:
    """Plan an epoch over the samples, in a new run."""
    samples = work.samples()
    level = level_config(row, work, max(TrainingRow.of(sample).num_tokens for sample in samples))
    low, high = work.pixel_limits
    student = {"name": "s", "model": work.model, "min_pixels": low, "max_pixels": high, "level": level.model_dump()}
    config = RunConfig.model_validate(
        {
            "run_dir": run_dir,
            "source": {"path": "."},
            "task": TASK.name,
            "teacher": {"model": "none"},
            "students": [student],
        }
    )
    run = Run.open(run_dir)
    return run, config, plan_epoch(run, run.student_dir("s"), SampleSources(lambda: samples, lambda: []), level)


def level_with_lora(row: str, work: Work) -> Measurement:
    """Do all of leveling, as a user's run does it."""
    with tempfile.TemporaryDirectory() as scratch:
        run, config, epoch = plan(row, work, f"{scratch}/run")
        with timed("start of Ray"):
            start_ray()
        started_s = time.monotonic()
        folder = run.student_dir("s")
        fine_tune(run, config, config.students[0], PhaseKey("level", "s"), TASK, epoch, folder, "")
        return leveling_measurement(run, folder, work.batch_size, started_s, time.monotonic())


class TrainerWithoutCheckpoints(ParityTrainer):
    """Leveling's trainer without the checkpoint at the end, so that it runs outside of Ray Train."""

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        pass


def level_fully(row: str, work: Work) -> Measurement:
    """Run leveling's trainer in this process, with its data from Ray Data."""
    on_gpu = torch.cuda.is_available()
    with tempfile.TemporaryDirectory() as scratch:
        run, config, epoch = plan(row, work, f"{scratch}/run")
        start_ray()
        student, folder = config.students[0], run.student_dir("s")
        job = TrainingJob.of(run, config, student, TASK, epoch, folder, "")
        set_seed(0)
        model = prepare_for_training(load_model(work.model, student.level, on_gpu), student.level.method)
        data = training_data(job, load_processor(work.model), rank=0, num_workers=1)
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        arguments = training_arguments(job, f"{scratch}/trainer", on_gpu)
        trainer = TrainerWithoutCheckpoints(job, data, model=model, args=arguments)
        started_s = time.monotonic()
        trainer.train()
        return leveling_measurement(run, folder, work.batch_size, started_s, time.monotonic())


def leveling_measurement(run: Run, folder: str, batch_size: int, started_s: float, ended_s: float) -> Measurement:
    """The speed from leveling's own log, without the first entry.

    Raises:
        ValueError: leveling logged no speed.
    """
    state = TrainingState.read(run, folder)
    log = state.whole_log(run, folder) if state is not None else TrainingLog()
    if not log.speed_entries:
        raise ValueError("leveling logged no speed: take more samples")
    return Measurement(logged_speed(log.speed_entries, batch_size), started_s, ended_s, log.entries)


def logged_speed(entries: Sequence[LogEntry], batch_size: int) -> Speed:
    """Means over the log entries, weighted by the time that each of them covers."""
    seconds = [batch_size * LOG_EVERY_STEPS / entry.samples_per_s for entry in entries if entry.samples_per_s]

    def mean(value_of: Callable[[LogEntry], float | None]) -> float:
        values = [value_of(entry) or 0.0 for entry in entries]
        return sum(value * s for value, s in zip(values, seconds, strict=True)) / sum(seconds)

    padding_share = mean(lambda entry: entry.padding_share)
    mfu = mean(lambda entry: entry.mfu) or None
    return Speed(
        samples_per_s=batch_size * LOG_EVERY_STEPS * len(entries) / sum(seconds),
        tokens_per_s=mean(lambda entry: entry.tokens_per_s),
        supervised_tokens_per_s=mean(lambda entry: entry.supervised_tokens_per_s),
        padding_share=padding_share,
        tflops_per_s=mean(lambda entry: entry.tflops_per_s),
        mfu=mfu,
        mfu_without_padding=mfu * (1 - padding_share) if mfu else None,
        memory_gib=max(entry.memory_gib or 0.0 for entry in entries),
        measured_s=sum(seconds),
        data_wait_share=mean(lambda entry: entry.data_wait_share),
    )


MEASURES: dict[str, Callable[[str, Work], Measurement]] = {
    "plain-lora": train_plainly,
    "plain-full": train_plainly,
    "ours-lora": level_with_lora,
    "ours-full": level_fully,
}


def main(row: str, folder: str) -> None:
    work = Work.load(folder)
    with GpuMonitor() as monitor:
        measurement = MEASURES[row](row, work)
    result = {
        **asdict(measurement.speed),
        "micro_batch": work.micro_batch_of(row),
        "trained_s": round(measurement.ended_s - measurement.started_s, 1),
        **monitor.between(measurement.started_s, measurement.ended_s),
        "log": [entry.to_json() for entry in measurement.log],
    }
    work.result(row).write_text(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
