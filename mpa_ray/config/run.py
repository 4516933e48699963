"""The root of the configuration tree, and settings that belong to no phase."""

from __future__ import annotations

from pydantic import Field, model_validator

from mpa_ray.config.annotate import AnnotateConfig
from mpa_ray.config.evaluate import EvaluateConfig
from mpa_ray.config.identify import IdentifyConfig
from mpa_ray.config.level import StudentConfig
from mpa_ray.config.models import AnswerConfig, ModelConfig
from mpa_ray.config.settings import Location, Settings
from mpa_ray.config.source import ObjectStoreConfig, ReadingConfig, SourceConfig


class LimitsConfig(Settings):
    """When a run stops instead of continuing."""

    max_failed_rate: float = Field(0.5, ge=0, le=1)
    """Stop if more than this share of the images cannot be read or answered."""
    min_images: int = Field(200, ge=1)
    """Check `max_failed_rate` only after this many images."""
    max_engine_deaths: int = Field(10, ge=1)
    """Stop after this many engine deaths on one shard. Until then, a new engine retries the shard."""
    max_image_deaths: int = Field(2, ge=1)
    """An image that kills this many engines while no other image is in them fails with reason `kills_engine`."""
    request_timeout_s: float = Field(600.0, gt=0)
    """An engine that does not reply to a request for this long counts as dead."""


class PlanConfig(Settings):
    """Settings of `mpa-ray plan`. No other command reads them, and they may change at any time."""

    from_run: Location | None = None
    """An earlier run, local or at s3://, whose measured rates to use."""
    num_images: int | None = Field(None, ge=1)
    """Images to annotate; None is the size of the indexed corpus, or else `source.limit`."""
    num_benchmark_questions: int | None = Field(None, ge=0)
    """Questions of all benchmarks together; None counts those in the run directory, or else the benchmarks' limits."""
    image_tokens: int | None = Field(None, ge=1)
    """Tokens of an image; None assumes images of `max_pixels` and the model's patch size."""
    teacher_images_per_s: float | None = Field(None, gt=0)
    """Images per second that one replica of the teacher annotates, including second answers."""
    student_images_per_s: float | None = Field(None, gt=0)
    """Images per second for which one replica of a student answers the teacher's questions."""
    questions_per_s: float | None = Field(None, gt=0)
    """Benchmark questions per second that one replica answers."""
    samples_per_s: float | None = Field(None, gt=0)
    """Samples per second that one worker trains on."""
    parity_share: float | None = Field(None, ge=0)
    """Parity samples for each image."""
    engine_start_s: float | None = Field(None, ge=0)
    """Seconds that a pass takes to start its engines and to shut them down."""
    training_start_s: float | None = Field(None, ge=0)
    """Seconds of a training in which no optimiser step is made, mostly its start and the export."""
    gpu: str | None = None
    """Kind of GPU to assume if `accelerator_type` is not set: A100-40G, A100-80G, H100, L4, ..."""
    gpu_memory_gib: float | None = Field(None, gt=0)
    """Memory of one GPU; None is the memory of its kind."""
    gpu_hour_price: float | None = Field(None, ge=0)
    """Price of one GPU for one hour, in any currency; None estimates no cost."""
    efficiency: float = Field(0.4, gt=0, le=1)
    """Share of a GPU's peak operations and memory bandwidth to assume for rates that are neither measured nor given."""


class EvaluationRunConfig(Settings):
    """A run that only measures models on benchmarks."""

    run_dir: Location
    """The folder or s3:// prefix of the results. A run continues from what is there."""
    reading: ReadingConfig = ReadingConfig()
    """How images are read ahead of the engines."""
    task: Location = "text_vqa"
    """A task of the library, such as text_vqa, chart_qa or knowledge_vqa, or the path of a YAML file of the same form.
    The error for an unknown task lists the library."""
    answer: AnswerConfig = AnswerConfig()
    """How models answer a question."""
    evaluate: EvaluateConfig | None = None
    """Benchmarks to measure models on."""
    limits: LimitsConfig = LimitsConfig()
    """When a run stops instead of continuing."""
    object_store: ObjectStoreConfig = ObjectStoreConfig()
    """How to access objects at s3://."""


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
    """Passes and trainings that `align` runs concurrently; None is as many as the cluster's CPUs and GPUs allow. For a
    cluster that scales up on demand, set it to the number that fits the cluster at its largest."""
    plan: PlanConfig | None = None
    """Assumptions for estimating the size of a run."""

    @model_validator(mode="after")
    def _names_are_unique(self) -> RunConfig:
        names = [student.name_in(n) for student in self.students for n in range(1, student.rounds + 1)]
        if len(set(names)) != len(names):
            raise ValueError(f"students: names must differ, got {names}")
        return self

    @model_validator(mode="after")
    def _rounds_have_an_arm(self) -> RunConfig:
        for student in self.students:
            if student.rounds > 1 and "parity" not in student.arms:
                raise ValueError(f"students: {student.name} has {student.rounds} rounds and no arm parity")
        return self
