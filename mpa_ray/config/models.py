"""Settings of models: how they are served, and how their replies are sampled."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator, model_validator

from mpa_ray.config.engines import EngineConfig, VllmEngineConfig
from mpa_ray.config.settings import Location, Settings

MAX_IMAGE_PIXELS = 89_478_485
"""The default of `max_image_pixels`. Pillow's own default is the same number: above it, Pillow warns of a decompression
bomb."""


_SET_BY_MPA_RAY = frozenset(
    ("messages", "conversation", "chat_template", "add_generation_prompt", "continue_final_message", "tokenize")
)
"""Variables of a chat template, and arguments of `apply_chat_template`, that users may not set."""


class ModelConfig(Settings):
    """A model and the engines that serve it."""

    model: Location
    """A Hugging Face folder, an `s3://` prefix, or a hub name. `owner/name@revision` is a hub model at a branch, tag or
    commit. `bundled:demo/models/teacher` names a folder inside the package."""
    engine: EngineConfig = VllmEngineConfig()
    """The engine that runs the model."""
    chat_template_args: dict[str, Any] = Field({})
    """Variables for the model's chat template, such as `enable_thinking: false`, wherever a prompt is rendered: in the
    engine, in training and in the check of the exported student. A variable that the template does not use is
    refused."""
    max_reasoning_tokens: int | None = Field(None, ge=0)
    """The maximum number of tokens of reasoning before an answer, in addition to the limit of the answer. A reply that
    is all reasoning is dropped as `reasoning_truncated`. None means 2048 if the chat template has a reasoning tag
    (unless it closes the reasoning in the prompt), and 0 otherwise."""
    num_replicas: int = Field(1, ge=1)
    """The number of engines, each in its own Ray actor."""
    max_num_replicas: int | None = Field(None, ge=1)
    """The number of engines that the pool may grow to while shards wait; None keeps the pool at `num_replicas`."""
    cpus_per_replica: float = Field(1.0, ge=0)
    """CPUs that Ray reserves for each engine. An engine without a GPU computes on this many cores, or on an equal share
    of the machine's cores if that share is larger."""
    gpus_per_replica: float = Field(0.0, ge=0)
    """GPUs for each engine. With a fraction, engines share a GPU, and each engine takes that fraction of the GPU's
    memory."""
    accelerator_type: str | None = None
    """Use only nodes with this kind of GPU. Write Ray's name for the kind, such as `A100`, `H100` or `L4`. None uses
    any node."""
    max_images_in_flight: int | None = Field(None, ge=1)
    """Images that one engine works on concurrently; None means 1.1 times the engine's `max_num_seqs`."""
    share_engine: bool = True
    """Whether one engine serves a model and its LoRA adapters, if their other settings are equal. With a shared engine,
    fewer engines start, and each image is read, rendered and sent through the vision tower once for all of these
    models. Without a GPU, adapters make an engine much slower."""
    min_pixels: int = Field(128 * 28 * 28, ge=1)
    """An image with fewer pixels is scaled up to this many. Limits of the model's own processor apply, too."""
    max_pixels: int = Field(512 * 28 * 28, ge=1)
    """An image with more pixels is scaled down to this many. Limits of the model's own processor apply, too. No other
    setting has as much effect on throughput."""
    max_image_pixels: int = Field(MAX_IMAGE_PIXELS, ge=1)
    """An image file with more pixels is not decoded and fails as `too_many_pixels`, because the file may be a
    decompression bomb. Raise this limit for scans and satellite images. A large image takes about 8 bytes of memory for
    each pixel."""

    @field_validator("chat_template_args")
    @classmethod
    def _variables_are_free(cls, variables: dict[str, Any]) -> dict[str, Any]:
        if taken := sorted(_SET_BY_MPA_RAY.intersection(variables)):
            raise ValueError(f"{taken[0]} is set by mpa_ray itself. Remove it")
        return variables

    @model_validator(mode="after")
    def _resources_fit_together(self) -> ModelConfig:
        if self.max_num_replicas is not None and self.max_num_replicas < self.num_replicas:
            raise ValueError(f"max_num_replicas {self.max_num_replicas} is less than num_replicas {self.num_replicas}")
        if self.gpus_per_replica > 1 and self.gpus_per_replica % 1:
            raise ValueError(f"gpus_per_replica {self.gpus_per_replica:g} is neither whole nor a fraction of one GPU")
        if self.accelerator_type is not None and not self.gpus_per_replica:
            raise ValueError(f"accelerator_type {self.accelerator_type} needs gpus_per_replica over 0")
        num_gpus = self.engine.num_gpus_per_copy
        if num_gpus > 1 and self.gpus_per_replica and self.gpus_per_replica < num_gpus:
            raise ValueError(f"gpus_per_replica {self.gpus_per_replica:g} is less than tensor_parallel_size {num_gpus}")
        return self

    @property
    def pixel_limits(self) -> tuple[int, int, int]:
        """`min_pixels`, `max_pixels` and `max_image_pixels`, in the order of the parameters of
        `mpa_ray.imaging.prepare.ImageScaling`."""
        return self.min_pixels, self.max_pixels, self.max_image_pixels

    @property
    def most_replicas(self) -> int:
        """The largest number of engines that the pool may have."""
        return self.max_num_replicas or self.num_replicas


class SamplingConfig(Settings):
    """How replies are sampled."""

    temperature: float = Field(0.0, ge=0)
    """Randomness of the replies; 0 always takes the most likely token."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Sample only from the most likely tokens: as many as are needed for their probabilities to add up to this
    value."""
    max_new_tokens: int = Field(128, ge=1)
    """A reply that has not ended after this many tokens is dropped as truncated. Reasoning does not count; see the
    model's `max_reasoning_tokens`."""
    seed: int = 0
    """Seed of sampled replies. The seed of each reply is derived from this number and the image's id."""


class AnswerConfig(Settings):
    """How models answer questions: the teacher's second answers, the students' answers, and all answers in
    evaluation."""

    max_new_tokens: int = Field(32, ge=1)
    """An answer ends after this many tokens at the latest; its reasoning does not count. A second answer of the teacher
    that has not ended by then is dropped as truncated; any other answer is used as it stands. Answers are greedy, with
    one exception: if `annotate.num_second_answers` is over 1, the teacher's second answers are sampled."""
