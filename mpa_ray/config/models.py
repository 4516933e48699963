"""Settings of models: how they are served, and how their replies are sampled."""

from __future__ import annotations

from pydantic import Field, model_validator

from mpa_ray.config.engines import EngineConfig, VllmEngineConfig
from mpa_ray.config.settings import Location, Settings

MAX_IMAGE_PIXELS = 89_478_485
"""The default of `max_image_pixels`. Pillow's own default is the same number: above it, Pillow warns of a decompression
bomb."""


class ModelConfig(Settings):
    """A model and the engines that serve it."""

    model: Location
    """A Hugging Face folder, an `s3://` prefix, or a hub name. `owner/name@revision` is a hub model at a branch, tag or
    commit. `bundled:demo/models/teacher` names a folder inside the package."""
    engine: EngineConfig = VllmEngineConfig()
    """The engine that runs the model."""
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
    """An image with fewer pixels is scaled up to this many."""
    max_pixels: int = Field(512 * 28 * 28, ge=1)
    """An image with more pixels is scaled down to this many. No other setting has as much effect on throughput."""
    max_image_pixels: int = Field(MAX_IMAGE_PIXELS, ge=1)
    """An image file with more pixels is not decoded and fails as `too_many_pixels`, because the file may be a
    decompression bomb. Raise this limit for scans and satellite images. A large image takes about 8 bytes of memory for
    each pixel."""

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
        `mpa_ray.imaging.decode.prepare`."""
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
    """A reply that has not ended after this many tokens is dropped as truncated."""
    seed: int = 0
    """Seed of sampled replies. The seed of each reply is derived from this number and the image's id."""


class AnswerConfig(Settings):
    """How models answer questions: the teacher's second answers, the students' answers, and all answers in
    evaluation."""

    max_new_tokens: int = Field(32, ge=1)
    """An answer ends after this many tokens at the latest. A second answer of the teacher that has not ended by then is
    dropped as truncated; any other answer is used as it stands. Answers are greedy, with one exception: if
    `annotate.num_second_answers` is over 1, the teacher's second answers are sampled."""
