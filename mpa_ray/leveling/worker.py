"""The code of a Ray Train worker: it trains the student for one epoch, then exports it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from transformers import AutoModelForImageTextToText, TrainingArguments, set_seed

from mpa_ray.config import LevelConfig, LoraConfig
from mpa_ray.imaging.prepare import ImageScaling
from mpa_ray.leveling.checkpoint import full_weights, restore_weights
from mpa_ray.leveling.collator import AnswerCollator
from mpa_ray.leveling.export import CheckQuestions, export, load_trained_weights
from mpa_ray.leveling.job import TrainingJob
from mpa_ray.leveling.parallel import shard
from mpa_ray.leveling.step_data import Share, StepLoader, Steps
from mpa_ray.leveling.trainable import prepare_for_training
from mpa_ray.leveling.trainer import ParityTrainer, TrainingData
from mpa_ray.models.chat_template import load_processor
from mpa_ray.models.checkpoints import local_model
from mpa_ray.models.generation_settings import GenerationSettings
from mpa_ray.observability.log_context import log_context
from mpa_ray.pipeline.death_recorder import current_process
from mpa_ray.pipeline.training_data import read_images
from mpa_ray.run.checkpoint_files import check_files

_LOG_EVERY_STEPS = 5
_NUM_CHECKED = 8
"""The number of questions on which the exported checkpoint is compared with the model in memory."""


def train(job: TrainingJob, failures: Any) -> None:
    """Train for one epoch, then export on rank 0. Training resumes from the last complete checkpoint, if there is one.

    Args:
        job: What to train.
        failures: The `TrainingFailures` actor of this training.
    """
    rank = ray.train.get_context().get_world_rank()
    ray.get(failures.begin.remote(rank, current_process(f"training worker {rank}")))
    with log_context(run=job.run.storage.root, phase="level", student=job.student):
        _train(job)


def _train(job: TrainingJob) -> None:
    job.check_owner()
    context = ray.train.get_context()
    on_gpu = torch.cuda.is_available()
    if not on_gpu:
        _configure_cpu(context.get_local_world_size())
    set_seed(job.level.seed)
    start = local_model(job.model, job.reader.object_store)
    processor = load_processor(start)
    model = prepare_for_training(load_model(start, job.level, on_gpu), job.level.method)
    if job.level.parallel == "fsdp" and context.get_world_size() > 1:
        model = shard(model, on_gpu)
    with tempfile.TemporaryDirectory() as scratch:
        data = training_data(job, processor, context.get_world_rank(), context.get_world_size())
        trainer = ParityTrainer(job, data, model=model, args=training_arguments(job, scratch, on_gpu))
        _run_epoch(trainer, job)
        weights = full_weights(trainer.model_wrapped)
        if context.get_world_rank() == 0:
            fresh = prepare_for_training(load_model(start, job.level, on_gpu, quantized=False), job.level.method)
            trained = load_trained_weights(fresh, weights)
            scaling = ImageScaling.of(processor, *job.pixel_limits)
            questions, card = _check_questions(job, scaling), job.cards[scaling.grid is not None]
            inherited = GenerationSettings.of_checkpoint(start, processor.tokenizer.pad_token_id)
            export(trained, processor, job.model, card, questions, job.run, job.folder, job.check_owner, inherited)
            trainer.write_state(is_complete=True)


def _configure_cpu(num_local_workers: int) -> None:
    """Divide the cores among the workers of a node, and avoid denormal numbers, which are slow."""
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // num_local_workers))
    torch.set_flush_denormal(True)


def training_data(job: TrainingJob, processor: Any, rank: int, num_workers: int) -> TrainingData:
    loader = StepLoader(
        batch_size=job.level.batch_size,
        share=Share(job.level.tokens_per_micro_batch, rank, num_workers),
        collator=AnswerCollator(processor, job.task, *job.pixel_limits, chat_template_args=job.chat_template_args),
        reader=job.reader,
    )
    return TrainingData(
        epoch=Steps(job.plan.num_steps, job.plan.steps, loader),
        held_out=Steps.of_rows(job.plan.held_out, loader),
        retained=Steps.of_rows(job.plan.retained, loader),
    )


def _run_epoch(trainer: ParityTrainer, job: TrainingJob) -> None:
    """Train to the end of the epoch. Afterwards, the model holds the weights to export."""
    latest = ray.train.get_checkpoint() or _inherited_checkpoint(job)
    if latest is None:
        trainer.train()
    else:
        with latest.as_directory() as folder:
            context = ray.train.get_context()
            # All workers of a node read this folder, so each of them checks a part of its files.
            check_files(Path(folder), context.get_local_rank(), context.get_local_world_size())
            trainer.train(resume_from_checkpoint=folder)
    if trainer.best.weights:
        restore_weights(trainer.model_wrapped, trainer.best.weights)
    trainer.measure_retained(is_trained=True)
    if trainer.is_world_process_zero():
        trainer.write_state()


def _inherited_checkpoint(job: TrainingJob) -> ray.train.Checkpoint | None:
    if job.inherited is None:
        return None
    file_system, root = job.run.storage.arrow()
    return ray.train.Checkpoint(f"{root}/{job.inherited}", file_system)


def _check_questions(job: TrainingJob, scaling: ImageScaling) -> CheckQuestions:
    rows = next(job.plan.steps(0, 1))[:_NUM_CHECKED]
    files = read_images(rows, job.reader)
    contents = [content if isinstance(content, bytes) else b"" for content in files]
    return CheckQuestions(
        rows, contents, job.task, scaling, job.max_new_tokens, job.chat_template_args, job.max_reasoning_tokens
    )


def load_model(start: str, level: LevelConfig, on_gpu: bool, quantized: bool = True) -> Any:
    """Load a checkpoint in the number format in which it will be trained.

    Args:
        start: The folder of the checkpoint.
        level: The training settings.
        on_gpu: Whether the training uses a GPU.
        quantized: False loads unquantized weights even if `level` trains with quantized weights.
    """
    settings: dict[str, Any] = {}
    generation = GenerationSettings.of_checkpoint(start)
    if generation is not None:
        # transformers cannot load a model with some settings that other versions of it accept.
        settings["generation_config"] = generation.config
    if level.attention != "auto":
        settings["attn_implementation"] = level.attention
    if quantized and isinstance(level.method, LoraConfig) and level.method.quantize:
        from transformers import BitsAndBytesConfig

        settings["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
        )
    dtype = torch.bfloat16 if on_gpu and isinstance(level.method, LoraConfig) else torch.float32
    return AutoModelForImageTextToText.from_pretrained(start, dtype=dtype, **settings)


def training_arguments(job: TrainingJob, scratch: str, on_gpu: bool) -> TrainingArguments:
    level = job.level
    return TrainingArguments(
        output_dir=scratch,
        max_steps=job.plan.num_steps,
        # For the Trainer, a whole step is one item of the data.
        per_device_train_batch_size=1,
        gradient_accumulation_steps=1,
        learning_rate=level.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=int(level.warmup_ratio * job.plan.num_steps),
        max_grad_norm=level.max_grad_norm,
        logging_steps=_LOG_EVERY_STEPS,
        logging_nan_inf_filter=False,
        # `ParityTrainer` schedules checkpoints and evaluations itself.
        save_strategy="no",
        eval_strategy="no",
        # The data of a resumed training starts at the first step after the checkpoint.
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
