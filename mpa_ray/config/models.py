"""A model, the engines that serve it, and how its replies are drawn."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from mpa_ray.config.engines import EngineConfig, VllmEngineConfig
from mpa_ray.config.settings import Settings


class ModelConfig(Settings):
    """A model and the engines that serve it."""

    model: str
    """A Hugging Face folder or hub name; `bundled:demo/models/teacher` names a folder inside the package."""
    engine: EngineConfig = VllmEngineConfig()
    """What runs the model."""
    num_replicas: int = Field(1, ge=1)
    """Engines side by side, each in a Ray actor of its own."""
    max_num_replicas: int | None = Field(None, ge=1)
    """The pool grows from `num_replicas` to so many while shards wait for an engine; None keeps it as it is."""
    cpus_per_replica: float = Field(1.0, ge=0)
    """CPUs that Ray sets aside for each replica. An engine without a GPU computes on that many cores, or on an equal
    share of the machine's where that is more."""
    gpus_per_replica: float = Field(0.0, ge=0)
    """GPUs for each replica; a fraction lets replicas share one, each with that share of its memory."""
    accelerator_type: str | None = None
    """Only on nodes with this GPU, by Ray's name for it (`A100`, `H100`, `L4`, ...); None takes any."""
    max_images_in_flight: int | None = Field(None, ge=1)
    """Images that one engine works on at a time; None is 1.1 times the engine's `max_num_seqs`."""
    share_engine: bool = True
    """Models that are LoRA adapters of one model, and that model, are asked in one engine where they differ in nothing
    else. It saves starts, reading, rendering and the vision tower; adapters cost an engine without a GPU dearly."""
    min_pixels: int = Field(128 * 28 * 28, ge=1)
    """An image with fewer pixels is scaled up to this many."""
    max_pixels: int = Field(512 * 28 * 28, ge=1)
    """An image with more pixels is scaled down to this many: the largest lever on throughput."""

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
    def most_replicas(self) -> int:
        """What the pool may grow to."""
        return self.max_num_replicas or self.num_replicas

    @model_validator(mode="before")
    @classmethod
    def _engine_kind_defaults_to_vllm(cls, data: Any) -> Any:
        engine = data.get("engine") if isinstance(data, dict) else None
        return {**data, "engine": {"kind": "vllm", **engine}} if isinstance(engine, dict) else data


class SamplingConfig(Settings):
    """How replies are drawn."""

    temperature: float = Field(0.0, ge=0)
    """0 takes the likeliest token each time."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Draw from the likeliest tokens that together reach this probability."""
    max_new_tokens: int = Field(128, ge=1)
    """A reply that is still going after this many tokens is dropped as truncated."""
    seed: int = 0
    """With the image's id, makes a drawn reply repeatable."""


class AnswerConfig(Settings):
    """How a question is answered: the teacher's second answer, the student's, and in evaluation."""

    max_new_tokens: int = Field(32, ge=1)
    """Answers are greedy; one still going after this many tokens is dropped as truncated."""
