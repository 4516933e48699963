"""Labelled benchmarks and the models that are measured on them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from mpa_ray.config.models import ModelConfig
from mpa_ray.config.settings import Settings


class BenchmarkConfig(Settings):
    """A labelled benchmark; every path is local or at s3://."""

    kind: Literal[
        "textvqa",
        "stvqa",
        "chartqa",
        "okvqa",
        "vqav2",
        "docvqa",
        "infovqa",
        "gqa",
        "pathvqa",
        "vqa_rad",
        "slake",
        "questions",
    ] = "questions"
    """In whose format the files are; `questions` is any JSON lines, JSON list or Parquet of your own."""
    path: str
    """The official file with the questions, or a Parquet mirror: a file, a folder or a glob. Of GQA's mirror, the
    instructions."""
    name: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """Names its results; None is its kind. Give one where two benchmarks are of one kind."""
    images: str | None = None
    """The folder that holds the image files; None is the folder of `path`'s file. Of GQA's mirror, the Parquet files
    with the images. Where a Parquet file holds its images itself, it is not looked at."""
    annotations: str | None = None
    """VQA's and OK-VQA's second file; None is the file beside `path` with its official name."""
    split: str | None = None
    """Train, val, test or the like: chooses among the files of a folder, and goes into ids that are made up and into
    COCO's file names. None goes by the files' names."""
    columns: dict[str, str] = Field({})
    """Of kind `questions`: the fields for `id`, `image`, `question`, `answers`, `family`, `answer_type`, `split` and
    `image_id` where they are named otherwise."""
    metric: str | None = None
    """Scores the answers; None is the benchmark's own, and for `questions` the task's."""
    limit: int | None = Field(None, ge=1)
    """Only the first so many questions."""

    @property
    def label(self) -> str:
        """Its name in results."""
        return self.name or self.kind


class NamedModelConfig(ModelConfig):
    """A model to measure, whether or not a run aligns it."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """Names its predictions."""
    compared_to: str | None = None
    """The name of the model from which its paired difference is told."""


class EvaluateConfig(Settings):
    """Labelled benchmarks to measure models on; no other step reads them."""

    benchmarks: list[BenchmarkConfig] = Field(min_length=1)
    """All are answered in one pass of each model."""
    models: list[NamedModelConfig] = Field([])
    """Further models besides the run's own: checkpoints or LoRA adapters."""
    shard_size: int = Field(256, ge=1)
    """Questions per shard, about."""
    teacher: bool = True
    """Also measure the teacher: the ceiling of what a student can learn from it."""

    @model_validator(mode="after")
    def _names_are_unique(self) -> EvaluateConfig:
        for what, names in (
            ("benchmarks", [benchmark.label for benchmark in self.benchmarks]),
            ("models", [model.name for model in self.models]),
        ):
            if len(set(names)) != len(names):
                raise ValueError(f"{what}: names must differ, got {names}")
        return self
