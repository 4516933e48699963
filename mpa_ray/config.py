"""The whole configuration tree. It imports nothing heavy, so that `--help` and a mistake are answered at once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from mpa_ray.errors import ConfigError

BUNDLED = "bundled:"
"""Prefix of a path inside the package, as in `bundled:demo/models/teacher`."""


class Settings(BaseModel):
    """A branch of the tree: unknown keys are refused, values cannot change, and each field explains itself."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=(), allow_inf_nan=False
    )


class SourceConfig(Settings):
    """Where the unlabeled images are."""

    path: str
    """A folder or prefix with images, Parquet files or tars, a glob of them, a list of URIs, or a saved `datasets`
    folder; local, at s3:// or at gs://."""
    kind: Literal["auto", "images", "list", "parquet", "webdataset", "saved_dataset"] = "auto"
    """What lies there; `auto` goes by the ending and by what a folder holds."""
    extensions: tuple[str, ...] = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff")
    """File name endings, without the dot, that count as images, also in tars; an empty list takes every file."""
    image_column: str = "image"
    """Of a CSV or JSONL list, Parquet or saved dataset: holds bytes, a URI, or Hugging Face's struct of both."""
    id_column: str | None = None
    """Its values become the images' ids; None numbers the rows."""
    metadata: tuple[str, ...] = ()
    """Columns carried through to D_PA and D_PI; in tars a member's ending (`txt`) or a key of the `.json` member."""
    min_bytes: int = Field(0, ge=0)
    """Smaller files are left out, or dropped when they are read where listing does not tell sizes."""
    max_bytes: int = Field(64 * 2**20, ge=1)
    """Larger files are left out, or dropped without reading them to the end."""
    fraction: float = Field(1.0, gt=0, le=1)
    """Take about this share of the images, drawn by `seed` and each image's id."""
    seed: int = 0
    limit: int | None = Field(None, ge=1)
    """Take at most this many images, the first in the source's order."""
    skip_duplicates: bool = True
    """Annotate files with the same bytes once: the others are dropped as `duplicate_of` the first."""
    shard_size: int = Field(256, ge=1)
    """Images per shard, the unit of retry, commit and resume."""
    max_shard_bytes: int = Field(256 * 2**20, ge=1)
    """A shard ends earlier where its files together would be larger."""
    num_listers: int = Field(16, ge=1)
    """Prefixes, tars or Parquet files that are listed at a time."""
    allow: tuple[Literal["http", "local_files", "parent_folders"], ...] = ()
    """What entries of lists, Parquet files and tars may name besides s3://, gs:// and files below them: http(s)://
    URIs, files of this machine in a list that lies elsewhere, paths with `..`."""

    @model_validator(mode="after")
    def _sizes_are_ordered(self) -> SourceConfig:
        if self.min_bytes > self.max_bytes:
            raise ValueError(f"min_bytes {self.min_bytes} is more than max_bytes {self.max_bytes}")
        return self


class ReadingConfig(Settings):
    """How files are read ahead of the engines."""

    num_shards: int = Field(4, ge=1)
    """Shards that are read at a time."""
    num_threads: int = Field(16, ge=1)
    """Requests at a time for one shard."""
    max_bytes_in_flight: int = Field(2 * 2**30, ge=1)
    """Files read and not yet committed, over the whole cluster; a shard that is larger by itself goes alone."""


class ObjectStoreConfig(Settings):
    """How objects at `s3://` are reached; credentials come from the environment, a profile or the machine's role."""

    endpoint_url: str | None = None
    """A server that speaks S3's protocol; None leaves it to AWS_ENDPOINT_URL, or to AWS itself."""
    region: str | None = None
    """None leaves it to AWS_REGION or the profile."""
    max_attempts: int = Field(8, ge=1)
    """Requests are repeated after faults that pass, with growing pauses, until this many have failed."""
    first_pause_s: float = Field(0.2, gt=0)
    """Pause after the first failure; it doubles with each further one, up to 20 seconds."""
    connect_timeout_s: float = Field(10.0, gt=0)
    read_timeout_s: float = Field(60.0, gt=0)
    max_connections: int = Field(64, ge=1)
    """Connections of one process."""
    multipart_bytes: int = Field(64 * 2**20, ge=5 * 2**20)
    """Objects from this size on are written in parts."""

    @field_validator("endpoint_url")
    @classmethod
    def _holds_no_credentials(cls, url: str | None) -> str | None:
        if url is not None and "@" in url:
            raise ValueError("a URL with credentials would end up in run.json; give them in the environment")
        return url


class VllmEngineConfig(Settings):
    """A vLLM engine in every replica."""

    kind: Literal["vllm"] = "vllm"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of weights and activations."""
    max_model_len: int | None = Field(None, ge=64)
    """Longest prompt plus reply in tokens; None takes the model's own limit."""
    max_num_seqs: int = Field(64, ge=1)
    """Requests that the engine decodes together."""
    block_size: int | None = None
    """Tokens per block of the KV cache; None leaves it to vLLM, and to 32 on a CPU."""
    tensor_parallel_size: int = Field(1, ge=1)
    """GPUs that hold one copy of the model together."""
    num_renderers: int | None = Field(None, ge=0)
    """Processes beside each engine that decode, scale and run the model's processor; 0 does that in a thread of the
    engine's own process. None is one for each CPU of `cpus_per_replica` but the first where the engine has a GPU, and 0
    where it computes on those CPUs itself."""
    num_threads: int | None = Field(None, ge=1)
    """Threads that an engine on a CPU computes with; None is what `cpus_per_replica` says, or one less where that is
    the whole machine and the model is so small (weights under 32 MiB) that it computes faster with a core left free."""
    cpu_kv_cache_gib: int = Field(1, ge=1)
    """KV cache of an engine on a CPU, in GiB."""
    engine_args: dict[str, Any] = {}
    """Passed to vLLM's `AsyncEngineArgs` as they are."""


class ScriptedEngineConfig(Settings):
    """A stand-in without a model whose replies follow from the image's bytes: for tests and for measuring the rest."""

    kind: Literal["scripted"]
    inconsistent_rate: float = Field(0.0, ge=0, le=1)
    """Share of images on which the second answer differs from the first."""
    wrong_rate: float = Field(0.0, ge=0, le=1)
    """Share of questions that this model answers otherwise than a scripted teacher would."""
    unparsable_rate: float = Field(0.0, ge=0, le=1)
    """Share of annotation replies without a question."""
    truncated_rate: float = Field(0.0, ge=0, le=1)
    """Share of annotation replies that stop at the token limit."""
    num_questions: int = Field(1, ge=1)
    """Different questions that a teacher draws from, by the seed of the request."""
    latency_s: float = Field(0.0, ge=0)
    """Seconds that every reply takes."""
    fail_on: tuple[str, ...] = ()
    """Ids of images on which a request fails."""
    die_on: tuple[str, ...] = ()
    """Ids of images on which the engine dies, once per actor start."""
    kill_on: tuple[str, ...] = ()
    """Ids of images on which the whole process is killed, as for want of memory."""
    hang_on: tuple[str, ...] = ()
    """Ids of images on which no reply ever comes."""
    die_once_in: str | None = None
    """Folder in which a mark is left at each death, so that the next engine survives the same image."""


EngineConfig = Annotated[VllmEngineConfig | ScriptedEngineConfig, Field(discriminator="kind")]


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
        num_gpus = getattr(self.engine, "tensor_parallel_size", 1)
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


class AnnotateConfig(Settings):
    """The Pseudo Annotator."""

    sampling: SamplingConfig = SamplingConfig(temperature=0.7, top_p=0.95)
    """How the teacher writes a pair."""
    reply: Literal["free", "json"] = "free"
    """`json` makes the engine write an object with a question and an answer, whatever the model is inclined to."""
    num_questions: int = Field(1, ge=1)
    """Pairs drawn for each image, in one visit; a question that the image has already is dropped."""
    num_second_answers: int = Field(1, ge=1)
    """1 answers each question afresh once, greedily. More are drawn as `sampling` says and put to the vote: the answer
    given most often is the second answer, stored with its share of the votes (self-consistency, arXiv 2203.11171)."""

    @model_validator(mode="after")
    def _draws_differ(self) -> AnnotateConfig:
        for name in ("num_questions", "num_second_answers"):
            if getattr(self, name) > 1 and self.sampling.temperature == 0:
                raise ValueError(f"{name} over 1 needs sampling.temperature over 0: greedy replies are all the same")
        return self


class AnswerConfig(Settings):
    """How a question is answered: the teacher's second answer, the student's, and in evaluation."""

    max_new_tokens: int = Field(32, ge=1)
    """Answers are greedy; one still going after this many tokens is dropped as truncated."""


class PlainMatch(Settings):
    """A matcher without settings."""

    kind: Literal["exact", "containment", "vqa_normalized"]


class NumericMatch(Settings):
    """Numbers of one unit, and other text exactly."""

    kind: Literal["numeric"]
    tolerance: float = Field(0.05, ge=0)
    """Largest difference, as a share of the reference."""


class AnlsMatch(Settings):
    """Text that is written nearly alike."""

    kind: Literal["anls"]
    threshold: float = Field(0.5, gt=0, le=1)
    """Least similarity (1 - normalised edit distance)."""


class AnyOfMatch(Settings):
    """Agreement by at least one of several."""

    kind: Literal["any_of"]
    of: tuple[MatcherConfig, ...] = Field(min_length=1)


def _kind_alone(value: Any) -> Any:
    return {"kind": value} if isinstance(value, str) else value


MatcherConfig = Annotated[
    PlainMatch | NumericMatch | AnlsMatch | AnyOfMatch, Field(discriminator="kind"), BeforeValidator(_kind_alone)
]


class IdentifyConfig(Settings):
    """The Parity Identifier."""

    matcher: MatcherConfig | None = None
    """When two answers agree: `exact`, `containment` (as the released code of the paper), `vqa_normalized`, `numeric`,
    `anls`, or `any_of` several; by name, or as a mapping with settings. None takes the task's."""
    ask_where_teacher_disagrees: bool = False
    """Also ask the student where the teacher contradicts itself: fills all four cells, changes nothing that is kept."""


Part = Literal["language", "projector", "vision"]


class LoraConfig(Settings):
    """Train low-rank adapters."""

    kind: Literal["lora"] = "lora"
    rank: int = Field(16, ge=1)
    alpha: float = Field(32.0, gt=0)
    """Adapters are scaled by alpha / rank."""
    dropout: float = Field(0.0, ge=0, lt=1)
    parts: tuple[Part, ...] = Field(("language",), min_length=1)
    """Where adapters go: every linear layer of these parts but the output head."""
    quantize: bool = False
    """Hold the frozen weights in 4 bits (QLoRA, arXiv 2305.14314); needs bitsandbytes and a GPU."""


class FullConfig(Settings):
    """Train weights themselves."""

    kind: Literal["full"]
    parts: tuple[Part, ...] = Field(("language",), min_length=1)
    """What is trained; the rest is frozen."""
    projector_learning_rate: float | None = Field(None, gt=0)
    """Peak rate of the projector; None is `learning_rate`."""
    vision_learning_rate: float | None = Field(None, gt=0)
    """Peak rate of the vision tower; None is a tenth of `learning_rate`."""


Arm = Literal["parity", "all", "consistent", "random", "labels"]


def measured_as(arm: Arm) -> str:
    """How predictions of a student that was trained on an arm are called, behind its name."""
    return "after" if arm == "parity" else arm


class BenchmarkConfig(Settings):
    """A labelled benchmark; every path is local or at s3://."""

    kind: Literal[
        "textvqa", "stvqa", "chartqa", "okvqa", "vqav2", "docvqa", "infovqa", "gqa", "pathvqa", "vqa_rad", "slake",
        "questions",
    ] = "questions"  # fmt: skip
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
    columns: dict[str, str] = {}
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
    models: list[NamedModelConfig] = []
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
    max_steps_at_once: int | None = Field(None, ge=1)
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


ConfigT = TypeVar("ConfigT", bound=Settings)


def resolve_path(path: str) -> str:
    """A `bundled:` path as a real one, and one that exists here as absolute: workers have other working directories."""
    if path.startswith(BUNDLED):
        return str(Path(__file__).parent / path.removeprefix(BUNDLED))
    return str(Path(path).absolute()) if Path(path).exists() else path


def load_config(path: str, overrides: dict[str, str] | None = None) -> RunConfig:
    """Read a YAML file, apply dotted overrides such as `{"students.0.level.seed": "1"}`, and check the result.

    Raises:
        ConfigError: the file is missing or not YAML, a key is unknown, or a value is out of its range.
    """
    return _validated(RunConfig, _tree(path, overrides or {}))


def load_evaluation(path: str, overrides: dict[str, str] | None = None) -> EvaluationRunConfig:
    """The same, also for a file without source, teacher and students: then there are only `evaluate.models`."""
    tree = _tree(path, overrides or {})
    is_whole = bool(tree.keys() & {"source", "teacher", "students"})
    return _validated(RunConfig if is_whole else EvaluationRunConfig, tree)


def load_object_store(overrides: dict[str, str]) -> ObjectStoreConfig:
    """The settings of `--object_store.NAME value` alone, for jobs that are given a run directory and no file.

    Raises:
        ConfigError: there is another setting, or a value is out of its range.
    """
    tree: dict[str, Any] = {"object_store": {}}
    for dotted, text in overrides.items():
        if not dotted.startswith("object_store."):
            raise ConfigError(f"--{dotted}", text, "is no option of this job.", "See --help.")
        _override(tree, dotted, _value(text))
    return _validated(_ObjectStoreAlone, tree).object_store


class _ObjectStoreAlone(Settings):
    object_store: ObjectStoreConfig


def _validated(kind: type[ConfigT], tree: dict[str, Any]) -> ConfigT:
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise _readable(error) from None


def _tree(path: str, overrides: dict[str, str]) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ConfigError("--config", path, f"is not UTF-8 ({error.reason}).", "Save it as UTF-8.") from error
    except OSError as error:
        raise ConfigError("--config", path, f"cannot be read ({error.strerror}).", "Give a YAML file.") from error
    except yaml.YAMLError as error:
        raise ConfigError("--config", path, f"is not YAML ({error}).", "Mend the file.") from error
    if not isinstance(tree, dict):
        raise ConfigError("--config", path, "does not hold a mapping.", "Start from configs in the README.")
    for dotted, text in overrides.items():
        _override(tree, dotted, _value(text))
    return tree


def _value(text: str) -> Any:
    """A value of the command line as YAML reads it, or as it is where it is no YAML, such as a path with a `*`."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _override(tree: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    node: Any = tree
    for depth, key in enumerate(parents):
        try:
            node = node[int(key)] if isinstance(node, list) else node.setdefault(key, {})
        except (ValueError, IndexError, AttributeError):
            where = ".".join(parents[: depth + 1])
            raise ConfigError(f"--{dotted}", value, f"there is no {where}.", "Check the dotted name.") from None
    if isinstance(node, list) and last.isdigit() and int(last) < len(node):
        node[int(last)] = value
    elif isinstance(node, dict):
        node[last] = value
    else:
        raise ConfigError(f"--{dotted}", value, f"{'.'.join(parents)} is not a mapping.", "Check the dotted name.")


def _readable(error: ValidationError) -> ConfigError:
    first, *others = error.errors()
    # A discriminated union puts the tag of the chosen variant into the location; it is no key of the file.
    where = ".".join(str(part) for part in first["loc"] if part not in ("vllm", "scripted", "lora", "full"))
    problem = {
        "extra_forbidden": "is not a setting.",
        "missing": "is required.",
    }.get(first["type"], first["msg"].removeprefix("Value error, ") + ".")
    value = first["input"] if first["type"] != "missing" else None
    more = f" ({len(others)} more: {', '.join('.'.join(map(str, e['loc'])) for e in others)})" if others else ""
    return ConfigError(where or "config", value, problem, f"See --help for the settings.{more}")
