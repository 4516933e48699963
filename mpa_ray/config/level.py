"""Settings of the Parity Leveler and of the students that it trains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from mpa_ray.config.evaluate import BenchmarkConfig
from mpa_ray.config.models import ModelConfig
from mpa_ray.config.settings import Name, Settings

Component = Literal["language", "projector", "vision"]


def _check_components(components: tuple[Component, ...]) -> tuple[Component, ...]:
    if len(set(components)) != len(components):
        raise ValueError("has a component twice")
    return components


Components = Annotated[tuple[Component, ...], AfterValidator(_check_components)]


class LoraConfig(Settings):
    """Train low-rank adapters (LoRA)."""

    kind: Literal["lora"] = "lora"
    rank: int = Field(16, ge=1)
    """Rank of every adapter."""
    alpha: float = Field(32.0, gt=0)
    """The output of an adapter is scaled by alpha / rank."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on the input of an adapter."""
    components: Components = Field(("language",), min_length=1)
    """The components of the model that get adapters: one in every linear layer, except in the output head."""
    quantize: bool = False
    """Store the frozen weights in 4 bits (QLoRA, arXiv 2305.14314). Needs bitsandbytes and a GPU."""


class FullConfig(Settings):
    """Train the model's own weights."""

    kind: Literal["full"]
    components: Components = Field(("language",), min_length=1)
    """Components of the model that are trained; the others are frozen."""
    projector_learning_rate: float | None = Field(None, gt=0)
    """Peak learning rate of the projector; None means `learning_rate`."""
    vision_learning_rate: float | None = Field(None, gt=0)
    """Peak learning rate of the vision tower; None means a tenth of `learning_rate`."""


Arm = Literal["parity", "all", "consistent", "random", "labels"]


@dataclass(frozen=True)
class ArmDescription:
    """How reports describe an arm, and how a plan estimates the arm's size."""

    name: str
    """What a student is trained on, in a few words."""
    sentence: str
    """A longer description, which completes the sentence "trained for one epoch on ..."."""
    as_many_as: Literal["D_PI", "D_PA"] | None
    """The set of samples that is about as large as the arm; None if no estimate is possible."""


_QUESTIONS = "questions about unlabeled images that the teacher wrote and answered"
ARMS: Mapping[Arm, ArmDescription] = {
    "parity": ArmDescription(
        "D_PI", f"{_QUESTIONS} the same way twice, and that the student answered differently", "D_PI"
    ),
    "all": ArmDescription("D_PA", _QUESTIONS, "D_PA"),
    "consistent": ArmDescription("teacher-consistent part of D_PA", f"{_QUESTIONS} the same way twice", "D_PA"),
    "random": ArmDescription("random part of D_PA", f"{_QUESTIONS}, drawn at random", "D_PI"),
    "labels": ArmDescription("labelled set", "a labelled set", None),
}


class HoldoutConfig(Settings):
    """Samples that are held out of training to choose the best weights."""

    share: float = Field(0.05, gt=0, lt=1)
    """Share of the training samples that is held out."""
    questions: BenchmarkConfig | None = None
    """A labelled set of your own to hold out instead of a share of the training samples."""
    max_samples: int = Field(512, ge=1)
    """Hold out at most this many samples."""
    every_steps: int = Field(50, ge=1)
    """Number of optimiser steps between two measurements of the held-out loss. The weights with the lowest loss are
    exported."""
    patience: int | None = Field(None, ge=1)
    """Stop training after this many consecutive measurements without a new lowest loss; None never stops early."""


class LevelConfig(Settings):
    """The Parity Leveler."""

    method: Annotated[LoraConfig | FullConfig, Field(discriminator="kind")] = LoraConfig()
    """Train LoRA adapters (`lora`) or the model's own weights (`full`)."""
    learning_rate: float = Field(1e-4, gt=0)
    """Peak learning rate, after a linear warm-up; it then falls linearly to 0."""
    warmup_ratio: float = Field(0.03, ge=0, lt=1)
    """Share of the steps in the warm-up."""
    batch_size: int = Field(16, ge=1)
    """Samples per optimiser step, counted over all workers."""
    tokens_per_micro_batch: int = Field(8192, ge=1)
    """Maximum number of tokens (prompts, images, answers and padding) in a forward pass of one worker. Set a lower
    number if a worker runs out of memory."""
    max_tokens: int | None = Field(None, ge=1)
    """Maximum number of tokens of a sample. Longer samples are left out and counted; samples are never truncated. None
    trains on samples of any length."""
    reduction: Literal["token", "sample"] = "token"
    """How the loss of a step is averaged: `token` gives every answer token the same weight, and `sample` gives every
    sample the same weight."""
    num_workers: int = Field(1, ge=1)
    """Number of data-parallel workers."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """Data parallelism: `ddp` replicates the model on every worker, and `fsdp` shards the model over the workers
    (`fully_shard`)."""
    cpus_per_worker: float = Field(1.0, gt=0)
    """CPUs that Ray reserves for each worker."""
    gpus_per_worker: float = Field(0.0, ge=0)
    """GPUs that Ray reserves for each worker; 0 trains on CPUs."""
    accelerator_type: str | None = None
    """Ray's name for the GPU type to use, such as `L4`; None uses any GPU."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass, to save memory."""
    attention: Literal["auto", "sdpa", "flash_attention_2", "eager"] = "auto"
    """Attention kernel; `auto` leaves the choice to the model, usually SDPA."""
    weight_decay: float = Field(0.0, ge=0)
    """Weight decay of AdamW."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients are clipped to this norm."""
    replay_share: float = Field(0.0, ge=0)
    """Number of known pairs to mix in for each sample of D_PI, to reduce forgetting. A known pair is one that the
    student already answers as the teacher does."""
    replay_from: BenchmarkConfig | None = None
    """A labelled set of your own to mix in instead of known pairs. Its questions are asked with the task's prompt."""
    retained_samples: int = Field(256, ge=0)
    """Number of known pairs to keep out of training, to measure forgetting; at most a tenth of the known pairs is kept
    out. Before and after training, the pairs that the student answers word for word are counted. A warning appears if
    the second count is less than 95 % of the first."""
    balance: bool = False
    """Whether to mix in known pairs of the answer types (numbers, colours, names, ...) that have a smaller share of
    D_PI than of D_PA."""
    holdout: HoldoutConfig | None = None
    """Hold samples out of training, and export the weights with the lowest loss on these samples. None holds out no
    samples."""
    checkpoint_every_steps: int = Field(50, ge=1)
    """Number of optimiser steps between two checkpoints. Training that was killed resumes from the last checkpoint."""
    checkpoint_every_minutes: float = Field(15.0, gt=0)
    """A checkpoint is also saved when this many minutes have passed since the last checkpoint."""
    max_failures: int = Field(3, ge=0)
    """How many times training may restart from the last checkpoint after a worker has failed. The next failure ends
    it."""
    report_to: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ("tensorboard",)
    """Where to log curves, in addition to training.json: `tensorboard` writes files into a folder beside training.json;
    `wandb` and `mlflow` use the services that you configure with their environment variables."""
    seed: int = 0
    """Seed of the sample order and of new adapters."""

    def of_arm(self, arm: Arm) -> LevelConfig:
        """The settings that apply to an arm. Replay and balance apply only to the arm `parity`."""
        if arm == "parity":
            return self
        return self.model_copy(update={"replay_share": 0.0, "replay_from": None, "balance": False})


class StudentConfig(ModelConfig):
    """A student to align."""

    name: Name = "student"
    """Name of the student, and of its folder in the run directory: at most 60 letters, digits, `.`, `_` and `-`. The
    first character must be a letter or a digit. The name may not end in a file name ending such as `.json`."""
    level: LevelConfig = LevelConfig()
    """How the student is fine-tuned."""
    arms: tuple[Arm, ...] = Field(("parity",), min_length=1)
    """The sets of samples to train on. The student is trained separately on each set: `parity` is D_PI, `all` is D_PA,
    `consistent` has the pairs that the teacher answers consistently, `random` has randomly drawn pairs of D_PA, as many
    as D_PI has, and `labels` is the labelled set that the setting `labels` describes. Replay and balance apply only to
    `parity`."""
    labels: BenchmarkConfig | None = None
    """The labelled set that arm `labels` trains on."""
    rounds: int = Field(1, ge=1)
    """How many times to align the student. In each further round, the aligned student answers the teacher's questions
    again, and is trained on the questions that it gets wrong this time. Round 2 of `small` is a student named
    `small.round2`. Further rounds train only on `parity`."""

    @model_validator(mode="after")
    def _arms_differ(self) -> StudentConfig:
        if len(set(self.arms)) != len(self.arms):
            raise ValueError("arms: has an arm twice")
        return self

    @property
    def labelled_sets(self) -> dict[str, BenchmarkConfig]:
        """The student's labelled sets, by the names of the settings that describe them, such as `level.replay_from`."""
        holdout = self.level.holdout
        sets = {
            "labels": self.labels,
            "level.replay_from": self.level.replay_from,
            "level.holdout.questions": holdout.questions if holdout is not None else None,
        }
        return {setting: benchmark for setting, benchmark in sets.items() if benchmark is not None}

    def name_in(self, round_number: int) -> str:
        """The student's name in a round; the first round has the number 1."""
        return self.name if round_number == 1 else f"{self.name}.round{round_number}"
