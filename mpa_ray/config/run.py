"""A whole run, and the parts of it that belong to no phase."""

from __future__ import annotations

from pydantic import Field, model_validator

from mpa_ray.config.annotate import AnnotateConfig
from mpa_ray.config.evaluate import EvaluateConfig
from mpa_ray.config.identify import IdentifyConfig
from mpa_ray.config.level import StudentConfig
from mpa_ray.config.models import AnswerConfig, ModelConfig
from mpa_ray.config.settings import Settings
from mpa_ray.config.source import ObjectStoreConfig, ReadingConfig, SourceConfig


class LimitsConfig(Settings):
    """When a run gives up rather than go on."""

    max_failed_rate: float = Field(0.5, ge=0, le=1)
    """Stop once more than this share of the images could not be read or answered."""
    min_images: int = Field(200, ge=1)
    """The share is not looked at before this many images."""
    max_engine_deaths: int = Field(10, ge=1)
    """Stop once engines have died this often on one shard; until then a new engine retries it."""
    max_image_deaths: int = Field(2, ge=1)
    """An image that has killed this many engines while alone in them ends as failed: kills_engine."""
    request_timeout_s: float = Field(600.0, gt=0)
    """An engine that leaves a request without a reply for so long counts as dead."""


class PlanConfig(Settings):
    """What `jobs/plan.py` reckons with; no other job reads it, and it may change at any time."""

    from_run: str | None = None
    """An earlier run, local or at s3://, whose measured rates are taken."""
    num_images: int | None = Field(None, ge=1)
    """Images to annotate; None takes what is indexed, or else `source.limit`."""
    num_benchmark_questions: int | None = Field(None, ge=0)
    """Questions of all benchmarks together; None takes those that are laid out, or else the benchmarks' limits."""
    image_tokens: int | None = Field(None, ge=1)
    """Tokens of an image; None reckons with images of `max_pixels` and the model's patches."""
    teacher_images_per_s: float | None = Field(None, gt=0)
    """Images that one replica of the teacher annotates a second, second answers included."""
    student_images_per_s: float | None = Field(None, gt=0)
    """Images whose questions one replica of a student answers a second."""
    questions_per_s: float | None = Field(None, gt=0)
    """Benchmark questions that one replica answers a second."""
    samples_per_s: float | None = Field(None, gt=0)
    """Samples that one worker trains on a second."""
    parity_share: float | None = Field(None, ge=0)
    """Parity samples for each image."""
    engine_start_s: float | None = Field(None, ge=0)
    """Seconds from the start of a pass to its first request, and to leave its place again."""
    training_start_s: float | None = Field(None, ge=0)
    """Seconds of a training in which no step is made: start, first passes, export."""
    gpu: str | None = None
    """Kind of GPU where `accelerator_type` is not set: A100-40G, A100-80G, H100, L4, ..."""
    gpu_memory_gib: float | None = Field(None, gt=0)
    """Of one GPU; None goes by its kind."""
    gpu_hour_price: float | None = Field(None, ge=0)
    """Price of one GPU for one hour, in any currency; without it no cost is told."""
    efficiency: float = Field(0.4, gt=0, le=1)
    """Share of a GPU's peak (operations, memory bandwidth) that is assumed where nothing was measured or given."""


class EvaluationRunConfig(Settings):
    """A run that only measures models on benchmarks."""

    run_dir: str
    """Where results go and from where a run continues."""
    reading: ReadingConfig = ReadingConfig()
    task: str = "text_vqa"
    """text_vqa, scene_text_vqa, chart_qa, knowledge_vqa, demo_world, or a YAML file like theirs."""
    answer: AnswerConfig = AnswerConfig()
    evaluate: EvaluateConfig | None = None
    limits: LimitsConfig = LimitsConfig()
    object_store: ObjectStoreConfig = ObjectStoreConfig()


class RunConfig(EvaluationRunConfig):
    """Everything about a run of Model Parity Alignment."""

    source: SourceConfig
    teacher: ModelConfig
    students: list[StudentConfig] = Field(min_length=1)
    annotate: AnnotateConfig = AnnotateConfig()
    identify: IdentifyConfig = IdentifyConfig()
    max_concurrent_phases: int | None = Field(None, ge=1)
    """Passes and trainings that `align` runs side by side, whatever the cluster has; None goes by its CPUs and GPUs.
    Give it where a cluster grows by demand: as many as its limits hold."""
    plan: PlanConfig | None = None
    """What a sizing page is drawn up from."""

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
