"""Settings of labelled benchmarks and of the models that are measured on them."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from mpa_ray.config.models import ModelConfig
from mpa_ray.config.settings import Location, Name, Settings, parse_name

_FOLDERS = ("again",)
"""The folders of `RUN/evaluation` that are no benchmark's."""


def _not_of_the_run(text: str) -> str:
    """A benchmark's name. Raises ValueError if it is not plain, or if the run has a folder of that name."""
    if parse_name(text).lower() in _FOLDERS:
        raise ValueError("is the name of another folder of the run: choose another name")
    return text


class BenchmarkConfig(Settings):
    """A labelled benchmark; every path is local or at s3://."""

    kind: str = "questions"
    """The format of the files: `questions` for your own set as JSON lines, a JSON list or Parquet, or a published
    benchmark such as textvqa, chartqa, okvqa, docvqa, gqa or slake. The error for an unknown kind lists all kinds."""
    path: Location
    """The official file with the questions, or a Parquet mirror: a file, a folder or a glob. For GQA's mirror, the
    files of `..._instructions`, which hold the questions."""
    name: Annotated[str, AfterValidator(_not_of_the_run)] | None = None
    """The name of its results; None is its kind. Two benchmarks of the same kind need different names."""
    images: Location | None = None
    """The folder with the image files; None is the folder of the file at `path`. For GQA's mirror, the Parquet files
    with the images. Not used where the Parquet files at `path` hold the images."""
    annotations: Location | None = None
    """The second file of VQA and OK-VQA; None is the file with the official name beside `path`."""
    split: str | None = None
    """The split, such as train, val or test: selects files of a folder, and is part of generated ids and of COCO's file
    names. None takes it from the files' names."""
    columns: dict[str, str] = Field({})
    """For kind `questions`: your names of the fields `id`, `image`, `question`, `answers`, `family`, `answer_type`,
    `split` and `image_id`, where they differ."""
    metric: str | None = None
    """The metric that scores the answers; None is the benchmark's own, or the task's for kind `questions`."""
    limit: int | None = Field(None, ge=1)
    """Use only this many questions, from the first."""

    @property
    def label(self) -> str:
        """The benchmark's name in results."""
        return self.name or self.kind


class NamedModelConfig(ModelConfig):
    """A further model to measure."""

    name: Name
    """The name of its predictions and scores."""
    compared_to: str | None = None
    """The name of a measured model; the paired difference from that model to this one is reported."""


class EvaluateConfig(Settings):
    """Labelled benchmarks, and the models to measure on them. Only evaluation reads these benchmarks."""

    benchmarks: list[BenchmarkConfig] = Field(min_length=1)
    """The benchmarks; each model answers all of them in one pass."""
    models: list[NamedModelConfig] = Field([])
    """Checkpoints or LoRA adapters to measure in addition to the run's own models."""
    shard_size: int = Field(256, ge=1)
    """Questions per shard; a shard may have more, since all questions about an image are in the same shard."""
    teacher: bool = True
    """Also measure the teacher, whose score limits what a student can learn from it."""

    @model_validator(mode="after")
    def _names_are_unique(self) -> EvaluateConfig:
        for what, names in (
            ("benchmarks", [benchmark.label for benchmark in self.benchmarks]),
            ("models", [model.name for model in self.models]),
        ):
            if len(set(names)) != len(names):
                raise ValueError(f"{what}: names must differ, got {names}")
        return self
