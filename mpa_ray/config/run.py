"""The root of the configuration tree, the limits of a run, and the settings of `mpa-ray plan`."""

from __future__ import annotations

from pydantic import Field, model_validator

from mpa_ray.config.annotate import AnnotateConfig
from mpa_ray.config.evaluate import EvaluateConfig
from mpa_ray.config.identify import IdentifyConfig
from mpa_ray.config.level import StudentConfig
from mpa_ray.config.models import AnswerConfig, ModelConfig
from mpa_ray.config.settings import Location, Settings, check_distinct
from mpa_ray.config.source import ObjectStoreConfig, ReadingConfig, SourceConfig


class LimitsConfig(Settings):
    """When a run stops instead of continuing."""

    max_failed_rate: float = Field(0.5, ge=0, le=1)
    """Stop if more than this share of the images cannot be read or answered."""
    max_unparsed_rate: float = Field(0.8, ge=0, le=1)
    """Stop if more than this share of the replies in a pass cannot be parsed. Set 1 to never stop for this reason."""
    min_images: int = Field(200, ge=1)
    """Check `max_failed_rate` and `max_unparsed_rate` only after this many images."""
    max_engine_deaths: int = Field(10, ge=1)
    """Stop after this many engine deaths on one shard, without counting the deaths that narrow down which images kill
    engines. Until then, a new engine retries the shard. Also stop after this many deaths of the Ray tasks that read the
    images of one shard."""
    max_poison_images: int = Field(16, ge=0)
    """Stop when more than this many images of one shard have killed engines."""
    max_image_deaths: int = Field(2, ge=1)
    """An image fails with reason `kills_engine` after this many engines have died while they worked on this image and
    no other."""
    request_timeout_s: float = Field(600.0, gt=0)
    """An engine that does not reply to a request within this time counts as dead."""


class PlanConfig(Settings):
    """Settings of `mpa-ray plan`. No other command reads them, and they may change at any time."""

    from_run: Location | None = None
    """The run directory of an earlier run, as a local path or an `s3://` URI. The plan uses the rates that were
    measured in that run."""
    num_images: int | None = Field(None, ge=1)
    """Images to annotate. None means the size of the indexed corpus or, if the run is not indexed yet, the images of
    the source up to `source.limit`. A remote source is not counted, and neither is one with a limit over 10,000; for
    these, None means `source.limit`."""
    num_benchmark_questions: int | None = Field(None, ge=0)
    """Questions of all benchmarks together. None counts the questions that the run directory already holds; for every
    other benchmark, its `limit` is used."""
    image_tokens: int | None = Field(None, ge=1)
    """Tokens of one image. None means the most that an image can have, which follows from the settings of the model's
    processor and the pixel limits."""
    teacher_images_per_s: float | None = Field(None, gt=0)
    """Images per second that one replica of the teacher annotates, including second answers."""
    student_images_per_s: float | None = Field(None, gt=0)
    """Images per second that one replica of a student processes when it answers the teacher's questions."""
    questions_per_s: float | None = Field(None, gt=0)
    """Benchmark questions per second that one replica answers."""
    samples_per_s: float | None = Field(None, gt=0)
    """Samples per second that one worker trains on."""
    parity_share: float | None = Field(None, ge=0)
    """Parity samples per image."""
    engine_start_s: float | None = Field(None, ge=0)
    """Seconds that a pass takes to start its engines and to shut them down."""
    training_start_s: float | None = Field(None, ge=0)
    """Seconds that a training run takes in addition to its optimiser steps, mostly to start and to export the model."""
    gpu: str | None = None
    """Kind of GPU to assume for models without `accelerator_type`: A100-40G, A100-80G, H100, L4, ..."""
    gpu_memory_gib: float | None = Field(None, gt=0)
    """Memory of one GPU; None means the usual memory of this kind of GPU."""
    gpu_hour_price: float | None = Field(None, ge=0)
    """Price of one GPU for one hour, in any currency; None estimates no cost."""
    efficiency: float = Field(0.4, gt=0, le=1)
    """Share of a GPU's peak speed and peak memory bandwidth that models are assumed to reach. The share is used to
    estimate the rates that are neither set here nor measured."""


class EvaluationRunConfig(Settings):
    """A run that only measures models on benchmarks."""

    run_dir: Location
    """The folder or `s3://` prefix of the results. A run continues from the results that are already there."""
    reading: ReadingConfig = ReadingConfig()
    """How images are read before the engines process them."""
    task: Location = "text_vqa"
    """The name of a task that comes with mpa_ray, such as text_vqa, chart_qa or knowledge_vqa, or the path of a YAML
    file with a task of your own. The error for an unknown task lists all names."""
    answer: AnswerConfig = AnswerConfig()
    """How models answer a question."""
    evaluate: EvaluateConfig | None = None
    """Benchmarks to measure models on."""
    limits: LimitsConfig = LimitsConfig()
    """When a run stops instead of continuing."""
    object_store: ObjectStoreConfig = ObjectStoreConfig()
    """How to access objects with `s3://` URIs."""


class RunConfig(EvaluationRunConfig):
    """A run of Model Parity Alignment."""

    source: SourceConfig
    """The unlabeled images."""
    teacher: ModelConfig
    """The model that writes the questions and answers."""
    students: list[StudentConfig] = Field(min_length=1)
    """The models to align with the teacher."""
    annotate: AnnotateConfig = AnnotateConfig()
    """How the teacher writes questions and answers."""
    identify: IdentifyConfig = IdentifyConfig()
    """How the answers of teacher and student are compared."""
    max_concurrent_phases: int | None = Field(None, ge=1)
    """Maximum number of passes and training runs that `align` executes concurrently; None means as many as the
    cluster's CPUs and GPUs allow. For a cluster that scales up on demand, set this to the number of passes and training
    runs that fit on the cluster at its maximum size."""
    plan: PlanConfig | None = None
    """Assumptions for `mpa-ray plan`, which estimates the time, cost and memory of a run."""

    @model_validator(mode="after")
    def _names_are_unique(self) -> RunConfig:
        for index, student in enumerate(self.students):
            if student.name.lower() == "teacher":
                raise ValueError(f"students.{index}.name: is the name of the run's teacher. Choose another name")
        names = [student.name_in(n) for student in self.students for n in range(1, student.rounds + 1)]
        check_distinct("students", names)
        return self

    @model_validator(mode="after")
    def _rounds_have_an_arm(self) -> RunConfig:
        for index, student in enumerate(self.students):
            if student.rounds > 1 and "parity" not in student.arms:
                raise ValueError(f"students.{index}.arms: lacks parity, which rounds after the first train on")
        return self
