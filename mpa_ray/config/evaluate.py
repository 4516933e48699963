"""Settings of labelled benchmarks and of the models that are measured on them."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from mpa_ray.config.models import ModelConfig
from mpa_ray.config.settings import Location, Name, Settings, check_distinct, parse_name

_FOLDERS = ("again",)
"""The names of folders in `RUN/evaluation` that do not belong to a benchmark."""


def _not_of_the_run(text: str) -> str:
    """Return a benchmark's name unchanged. Raises ValueError if the name is not plain, or is one of `_FOLDERS`."""
    if parse_name(text).lower() in _FOLDERS:
        raise ValueError("is the name of another folder of the run: choose another name")
    return text


class BenchmarkConfig(Settings):
    """A labelled benchmark. Each path is local or an `s3://` URI."""

    kind: str = "questions"
    """The format of the files: `questions` for your own set as JSON lines, a JSON list or Parquet, or a published
    benchmark such as textvqa, chartqa, okvqa, docvqa, gqa or slake. The error for an unknown kind lists all kinds."""
    path: Location
    """The official file with the questions, or a Parquet mirror: a file, a folder or a glob. For GQA's mirror, give the
    files in a folder whose name ends in `_instructions`; they hold the questions."""
    name: Annotated[str, AfterValidator(_not_of_the_run)] | None = None
    """The benchmark's name in results; None uses its kind. Two benchmarks of the same kind need different names."""
    images: Location | None = None
    """The folder with the image files; None means the folder that contains the file with the questions. For GQA's
    mirror, give the Parquet files with the images; None means `path` with `_images` in place of `_instructions`. This
    setting is not used if the Parquet files at `path` hold the images."""
    annotations: Location | None = None
    """For VQA and OK-VQA, the file with the answers, which is separate from the file with the questions. None means the
    file with the official name in the same folder as `path`."""
    split: str | None = None
    """The split, such as train, val or test. If `path` is a folder or a glob, the split selects files. It is also part
    of generated ids and of the names of COCO's images. None derives the split from the files' names."""
    columns: dict[str, str] = Field({})
    """For kind `questions`: the name of your column for each of the fields `id`, `image`, `question`, `answers`,
    `family`, `answer_type`, `split` and `image_id`. By default, `id` is in the column `question_id`, and each other
    field is in the column of the same name."""
    metric: str | None = None
    """The metric that scores the answers. None uses the benchmark's own metric or, for kind `questions`, the task's
    metric."""
    limit: int | None = Field(None, ge=1)
    """Maximum number of questions to use: the first ones in the order of the files."""

    @property
    def label(self) -> str:
        """The benchmark's name in results."""
        return self.name or self.kind


class NamedModelConfig(ModelConfig):
    """A model to measure in addition to the run's own models."""

    name: Name
    """The name under which the model's predictions and scores are stored."""
    compared_to: str | None = None
    """The name of another measured model. The report then also shows this model's scores minus the scores of the other
    model, compared question by question."""


class EvaluateConfig(Settings):
    """Labelled benchmarks, and the models to measure on them. These benchmarks are never used for training."""

    benchmarks: list[BenchmarkConfig] = Field(min_length=1)
    """The benchmarks; each model answers all of them in one pass."""
    models: list[NamedModelConfig] = Field([])
    """Checkpoints or LoRA adapters to measure in addition to the run's own models."""
    shard_size: int = Field(256, ge=1)
    """Number of questions per shard. A shard may have more, since all questions about one image are in the same
    shard."""
    teacher: bool = True
    """Also measure the teacher. Its scores limit how much a student can gain."""

    @model_validator(mode="after")
    def _names_are_unique(self) -> EvaluateConfig:
        for what, names in (
            ("benchmarks", [benchmark.label for benchmark in self.benchmarks]),
            ("models", [model.name for model in self.models]),
        ):
            check_distinct(what, names)
        for index, model in enumerate(self.models):
            if model.name.lower() == "teacher":
                raise ValueError(f"models.{index}.name: is the name of the run's teacher. Choose another name")
        return self
