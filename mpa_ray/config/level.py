"""Settings of the Parity Leveler, and the students that it trains."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from mpa_ray.config.evaluate import BenchmarkConfig
from mpa_ray.config.models import ModelConfig
from mpa_ray.config.settings import Settings

Component = Literal["language", "projector", "vision"]


class LoraConfig(Settings):
    """Train low-rank adapters."""

    kind: Literal["lora"] = "lora"
    rank: int = Field(16, ge=1)
    alpha: float = Field(32.0, gt=0)
    """Adapters are scaled by alpha / rank."""
    dropout: float = Field(0.0, ge=0, lt=1)
    components: tuple[Component, ...] = Field(("language",), min_length=1)
    """Adapters go to every linear layer of these components of the model, except the output head."""
    quantize: bool = False
    """Hold the frozen weights in 4 bits (QLoRA, arXiv 2305.14314); needs bitsandbytes and a GPU."""


class FullConfig(Settings):
    """Train weights themselves."""

    kind: Literal["full"]
    components: tuple[Component, ...] = Field(("language",), min_length=1)
    """Components of the model that are trained; the others are frozen."""
    projector_learning_rate: float | None = Field(None, gt=0)
    """Peak rate of the projector; None is `learning_rate`."""
    vision_learning_rate: float | None = Field(None, gt=0)
    """Peak rate of the vision tower; None is a tenth of `learning_rate`."""


Arm = Literal["parity", "all", "consistent", "random", "labels"]


def measured_as(arm: Arm) -> str:
    """How predictions of a student that was trained on an arm are called, behind its name."""
    return "after" if arm == "parity" else arm


class HoldoutConfig(Settings):
    """Samples kept out of training to watch it."""

    share: float = Field(0.05, gt=0, lt=1)
    """Of D_PI."""
    questions: BenchmarkConfig | None = None
    """A labelled set of your own to watch, in place of that share."""
    max_samples: int = Field(512, ge=1)
    every_steps: int = Field(50, ge=1)
    """The loss on them is measured this often; the weights with the lowest are exported."""
    patience: int | None = Field(None, ge=1)
    """Training stops once so many measurements in a row were no better than the best; None goes to the end."""


class LevelConfig(Settings):
    """The Parity Leveler."""

    method: Annotated[LoraConfig | FullConfig, Field(discriminator="kind")] = LoraConfig()
    """What is trained."""
    learning_rate: float = Field(1e-4, gt=0)
    """Peak rate; linear warm-up, then linear to 0."""
    warmup_ratio: float = Field(0.03, ge=0, lt=1)
    """Share of the steps in which the rate rises."""
    batch_size: int = Field(16, ge=1)
    """Samples per optimiser step, over all workers."""
    tokens_per_micro_batch: int = Field(8192, ge=1)
    """Of prompts, images, answers and padding in one forward pass of one worker: as much as its memory takes."""
    max_tokens: int | None = Field(None, ge=1)
    """Longer samples are left out and counted, never cut; None takes all, as identification served them."""
    reduction: Literal["token", "sample"] = "token"
    """What counts alike in the loss of a step: every token of an answer, or every sample."""
    num_workers: int = Field(1, ge=1)
    """Data-parallel workers."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """Whether every worker holds the whole model, or all of them one in shards (`fully_shard`)."""
    cpus_per_worker: float = Field(1.0, gt=0)
    gpus_per_worker: float = Field(0.0, ge=0)
    accelerator_type: str | None = None
    """Which kind of GPU, by Ray's name, such as `L4`; None takes any."""
    gradient_checkpointing: bool = False
    """Compute activations twice rather than hold them."""
    attention: Literal["auto", "sdpa", "flash_attention_2", "eager"] = "auto"
    """Kernel; `auto` is the model's own choice, SDPA as a rule."""
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    replay_share: float = Field(0.0, ge=0)
    """Against forgetting: pairs that the student already answers, mixed in at this share of D_PI's size."""
    replay_from: BenchmarkConfig | None = None
    """A labelled set of your own to replay, in place of those pairs; its questions are asked as the task's are."""
    retained_samples: int = Field(256, ge=0)
    """So many pairs that the student already answers are kept from training; how many of them it still answers
    afterwards is told, and warned of where it is less than 95 %."""
    balance: bool = False
    """Also mix in pairs that the student already answers wherever D_PI has fewer answers of a type (numbers, colours,
    names, ...) than D_PA's shares would give it."""
    holdout: HoldoutConfig | None = None
    """Watch the loss on samples that are not trained on; off by default."""
    checkpoint_every_steps: int = Field(50, ge=1)
    """A killed run goes on from the last of these."""
    checkpoint_every_minutes: float = Field(15.0, gt=0)
    """Also after so long."""
    max_failures: int = Field(3, ge=0)
    """Worker failures that are survived by restarting from the last checkpoint."""
    report_to: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ("tensorboard",)
    """Where curves go besides training.json: files for TensorBoard beside it, or services that are set up by their own
    environment variables."""
    seed: int = 0
    """Order of the samples and initial adapters."""

    def of_arm(self, arm: Arm) -> LevelConfig:
        """What counts for an arm: replay and balance belong to D_PI alone."""
        if arm == "parity":
            return self
        return self.model_copy(update={"replay_share": 0.0, "replay_from": None, "balance": False})


class StudentConfig(ModelConfig):
    """A student to align."""

    name: str = Field("student", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """Names its folder in the run directory."""
    level: LevelConfig = LevelConfig()
    """How this student is fine-tuned."""
    arms: tuple[Arm, ...] = Field(("parity",), min_length=1)
    """On what, a training of its own for each: `parity` is D_PI, `all` D_PA, `consistent` the pairs on which the
    teacher agrees with itself, `random` as many of D_PA as D_PI holds, `labels` the labelled set below. Replay and
    balance belong to `parity` alone."""
    labels: BenchmarkConfig | None = None
    """The labelled set of arm `labels`."""
    rounds: int = Field(1, ge=1)
    """How often it is aligned: the aligned student is put the teacher's questions again and trained on those that it
    fails at now. Round 2 of `small` is a student called `small.round2`; only arm `parity` goes on."""

    def name_in(self, round_number: int) -> str:
        """How it is called in a round, from 1 on."""
        return self.name if round_number == 1 else f"{self.name}.round{round_number}"
