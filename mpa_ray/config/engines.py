"""Engine settings: one class for each kind of engine.

To add an engine, write its settings here and its factory in a new module, and add the class to `EngineConfig`.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import Field

from mpa_ray.config.settings import Location, Settings
from mpa_ray.textual import Json

_MAX_ADAPTERS = 15
"""The default maximum number of adapters in one engine. Each adapter takes memory on every GPU."""

ARGUMENTS_WITHOUT_EFFECT = frozenset(
    (
        # memory, scheduling and compilation
        *(
            "gpu_memory_utilization",
            "kv_cache_memory_bytes",
            "num_gpu_blocks_override",
            "cpu_offload_gb",
            "swap_space",
            "max_num_batched_tokens",
            "max_num_partial_prefills",
            "max_num_seqs",
            "enable_chunked_prefill",
            "enable_prefix_caching",
            "async_scheduling",
            "stream_interval",
            "scheduling_policy",
            "enforce_eager",
            "compilation_config",
            "cudagraph_capture_sizes",
            "max_cudagraph_capture_size",
            "block_size",
            "use_tqdm_on_load",
        ),
        # how the work is divided over devices
        *(
            "tensor_parallel_size",
            "pipeline_parallel_size",
            "data_parallel_size",
            "data_parallel_size_local",
            "data_parallel_address",
            "data_parallel_backend",
            "enable_expert_parallel",
            "distributed_executor_backend",
            "distributed_timeout_seconds",
            "disable_custom_all_reduce",
            "max_parallel_loading_workers",
            "mm_encoder_tp_mode",
            "numa_bind",
            "numa_bind_nodes",
            "numa_bind_cpus",
            "ray_workers_use_nsight",
        ),
        # where the weights come from, and how they are read
        *(
            "hf_token",
            "download_dir",
            "load_format",
            "model_loader_extra_config",
            "safetensors_load_strategy",
            "safetensors_prefetch_num_threads",
            "safetensors_prefetch_block_size",
            "pt_load_map_location",
            "ignore_patterns",
        ),
        # caches and slots
        *(
            "mm_processor_cache_gb",
            "mm_processor_cache_type",
            "mm_shm_cache_max_object_size_mb",
            "mm_hasher_algorithm",
            "renderer_num_workers",
            "skip_mm_profiling",
            "prefix_caching_hash_algo",
            "max_loras",
            "max_cpu_loras",
            "max_lora_rank",
            "fully_sharded_loras",
        ),
        # logs and measurements
        *(
            "disable_log_stats",
            "disable_log_requests",
            "enable_log_requests",
            "aggregate_engine_logging",
            "log_level",
            "logging_config",
            "log_config_file",
            "served_model_name",
            "otlp_traces_endpoint",
            "collect_detailed_traces",
            "show_hidden_metrics_for_version",
            "kv_cache_metrics",
            "kv_cache_metrics_sample",
            "cudagraph_metrics",
            "custom_histogram_buckets",
            "enable_mfu_metrics",
            "enable_mm_processor_stats",
            "enable_logging_iteration_details",
            "enable_layerwise_nvtx_tracing",
            "profiler_config",
            "shutdown_timeout",
            "enable_sleep_mode",
        ),
    )
)
"""Arguments of vLLM's engine that do not change its replies, except for rounding errors, which depend on how the work
is divided and ordered. These arguments are not part of a run's fingerprint, so they may change during a run. All other
arguments are part of the fingerprint."""
_RANDOM_WEIGHTS = "dummy"
"""The only value of the argument `load_format` that changes the replies: it makes vLLM start with random weights."""


@dataclass(frozen=True)
class KvCache:
    """How an engine on a GPU stores the keys and values of its requests."""

    value_bytes: float
    """Bytes of one number."""
    memory_share: float | None
    """The share of a GPU's memory that the engine takes for weights and cache together; None means the engine's
    default."""


class EngineSettings(Settings):
    """The settings and properties that every kind of engine has."""

    factory: ClassVar[str]
    """`module:function` of the `EngineFactory` that starts the engine."""
    check: ClassVar[str | None] = None
    """`module:function` of the `EngineCheck` that compares the settings with the installed engine, if there is one."""
    has_checkpoint: ClassVar[bool]
    """Whether the engine loads a model's files. Only a model with files can be checked, trained and exported."""
    package: ClassVar[str | None] = None
    """The Python package that the engine needs, if it is not installed with mpa_ray itself."""
    serve_command: ClassVar[str | None] = None
    """The command that serves an exported model with this engine outside of mpa_ray. The model's folder is the
    command's last argument."""
    for_tests: ClassVar[bool] = False
    """Whether only tests and measurements use the engine. `--help` does not show such an engine."""

    @property
    @abstractmethod
    def default_images_in_flight(self) -> int:
        """The number of images that one engine works on concurrently if `max_images_in_flight` is not set."""

    @property
    def num_gpus_per_copy(self) -> int:
        """The number of GPUs over which one copy of the model is split."""
        return 1

    @property
    def max_adapters(self) -> int:
        """The number of LoRA adapters that one engine serves in addition to its model; 0 if it serves none."""
        return 0

    @property
    def cache_block_tokens(self) -> int | None:
        """The number of tokens in a block of the KV cache; None if no setting gives it."""
        return None

    @property
    def kv_cache(self) -> KvCache | None:
        """The cache whose size decides whether a model fits on a GPU; None if the engine has no such cache."""
        return None

    @property
    def max_sequence_tokens(self) -> int | None:
        """The maximum length of prompt plus reply, in tokens; None means the model's own limit."""
        return None

    @property
    def limits_sequences(self) -> bool:
        """Whether the settings limit the length of prompt plus reply. Also true if the engine has no such limit."""
        return True

    def with_max_sequence_tokens(self, num_tokens: int) -> Self:  # noqa: ARG002
        """These settings with another maximum length of prompt plus reply."""
        return self

    @property
    def processor_arguments(self) -> Mapping[str, Any]:
        """Arguments for the model's processor that only the engine uses."""
        return {}

    @property
    def num_decoded_together(self) -> int:
        """The number of requests in one decoding batch. For each token, the weights are read once for the whole batch,
        so this number is used to estimate the speed."""
        return 1

    @property
    def weight_format(self) -> str:
        """The number format of the weights: `float32`, `bfloat16`, `float16` or `auto`. Estimates assume 16 bits for
        `auto`."""
        return "auto"

    @property
    def loads_hugging_face_weights(self) -> bool:
        """Whether the engine needs the checkpoint's `*.safetensors` or `*.bin` files."""
        return self.has_checkpoint

    @abstractmethod
    def identity_fields(self) -> dict[str, Json]:
        """The settings that change an engine's replies, keyed by their names in a run's fingerprint."""


class VllmEngineConfig(EngineSettings):
    """A vLLM engine in every replica."""

    factory: ClassVar[str] = "mpa_ray.engine.vllm.engine:start"
    check: ClassVar[str | None] = "mpa_ray.engine.vllm.known_arguments:check_settings"
    has_checkpoint: ClassVar[bool] = True
    package: ClassVar[str | None] = "vllm"
    serve_command: ClassVar[str | None] = "vllm serve"

    kind: Literal["vllm"] = "vllm"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of weights and activations."""
    max_model_len: int | None = Field(None, ge=64)
    """Maximum length of prompt plus reply, in tokens. None means what the longest visit to an image needs, or the
    model's own limit if that is lower or the model's family is not known."""
    max_num_seqs: int = Field(64, ge=1)
    """Maximum number of requests that the engine decodes together."""
    block_size: int | None = None
    """Tokens per block of the KV cache; None means vLLM's default on a GPU and 32 on a CPU."""
    tensor_parallel_size: int = Field(1, ge=1)
    """Number of GPUs over which one copy of the model is split."""
    num_renderers: int | None = Field(None, ge=0)
    """Number of processes that each engine starts to decode and scale images and to run the model's processor. With 0,
    a thread of the engine's own process does this work. None means 0 for an engine on a CPU, and one less than
    `cpus_per_replica` for an engine on a GPU."""
    num_threads: int | None = Field(None, ge=1)
    """Number of threads of an engine on a CPU. None means one thread for each core that the engine has (see
    `cpus_per_replica`). There is one exception: if the engine has all cores of the machine and its model has less than
    32 MiB of weights, one core is left free, because the engine is then faster."""
    cpu_kv_cache_gib: int = Field(1, ge=1)
    """Size of the KV cache of an engine on a CPU, in GiB."""
    engine_args: dict[str, Any] = Field({})
    """Arguments of vLLM's `AsyncEngineArgs`; they override the settings above."""

    @property
    def default_images_in_flight(self) -> int:
        """10 % more than `max_num_seqs`: enough images to keep the batch full, and few enough that each image's KV
        blocks stay in the cache."""
        return math.ceil(1.1 * self.max_num_seqs)

    @property
    def num_gpus_per_copy(self) -> int:
        return self.tensor_parallel_size

    @property
    def max_adapters(self) -> int:
        """One less than the engine's adapter slots, since requests without an adapter also need a slot."""
        num_slots: int = self.engine_args.get("max_loras", _MAX_ADAPTERS + 1)
        return max(1, num_slots - 1)

    @property
    def cache_block_tokens(self) -> int | None:
        return self.block_size

    @property
    def kv_cache(self) -> KvCache:
        is_fp8 = "fp8" in str(self.engine_args.get("kv_cache_dtype", "auto"))
        share = self.engine_args.get("gpu_memory_utilization")
        return KvCache(
            value_bytes=1.0 if is_fp8 else 4.0 if self.dtype == "float32" else 2.0,
            memory_share=None if share is None else float(share),
        )

    @property
    def max_sequence_tokens(self) -> int | None:
        # vLLM also takes texts, such as "auto", and -1, for which it chooses a length.
        argument = self.engine_args.get("max_model_len", self.max_model_len)
        return argument if isinstance(argument, int) and argument > 0 else None

    @property
    def limits_sequences(self) -> bool:
        return self.max_model_len is not None or "max_model_len" in self.engine_args

    def with_max_sequence_tokens(self, num_tokens: int) -> Self:
        return self.model_copy(update={"max_model_len": num_tokens})

    @property
    def processor_arguments(self) -> Mapping[str, Any]:
        return self.engine_args.get("mm_processor_kwargs") or {}

    @property
    def num_decoded_together(self) -> int:
        return self.max_num_seqs

    @property
    def weight_format(self) -> str:
        return self.dtype

    @property
    def loads_hugging_face_weights(self) -> bool:
        """False for other formats, such as vLLM's own, and for random weights (`load_format: dummy`)."""
        return self.engine_args.get("load_format", "auto") in ("auto", "hf", "safetensors", "pt")

    def identity_fields(self) -> dict[str, Json]:
        # An argument overrides the setting of the same name.
        arguments = {"dtype": self.dtype, "max_model_len": self.max_model_len} | self.engine_args
        return {
            name if name in type(self).model_fields else f"engine_args.{name}": value
            for name, value in arguments.items()
            if name not in ARGUMENTS_WITHOUT_EFFECT or (name, value) == ("load_format", _RANDOM_WEIGHTS)
        }


class ScriptedEngineConfig(EngineSettings):
    """An engine without a model, for tests and benchmarks. Its replies are derived from the image's bytes."""

    factory: ClassVar[str] = "mpa_ray.engine.scripted:start"
    has_checkpoint: ClassVar[bool] = False
    for_tests: ClassVar[bool] = True

    kind: Literal["scripted"]
    inconsistent_rate: float = Field(0.0, ge=0, le=1)
    """Share of images on which the second answer differs from the first."""
    wrong_rate: float = Field(0.0, ge=0, le=1)
    """Share of images on which this model's answers differ from a scripted teacher's."""
    unparsable_rate: float = Field(0.0, ge=0, le=1)
    """Share of annotation replies without a question."""
    truncated_rate: float = Field(0.0, ge=0, le=1)
    """Share of annotation replies that stop at the token limit."""
    hostile_rate: float = Field(0.0, ge=0, le=1)
    """Share of images whose replies are hard to process: empty, very long, markup, or text that UTF-8 cannot encode."""
    reasoning_form: Literal["none", "tagged", "opened", "endless"] = "none"
    """Whether replies begin with reasoning: `tagged` encloses it in tags, `opened` leaves out the opening tag, as if
    the prompt had opened the reasoning, and `endless` replies never reach an answer."""
    num_questions: int = Field(1, ge=1)
    """Number of different questions about an image; the request's seed selects one."""
    latency_s: float = Field(0.0, ge=0)
    """Seconds that every reply takes."""
    fail_on: tuple[str, ...] = ()
    """Ids of images for which every request fails."""
    die_on: tuple[str, ...] = ()
    """Ids of images on which the engine dies: it raises `EngineDied`."""
    kill_on: tuple[str, ...] = ()
    """Ids of images on which the whole process is killed, as happens when memory runs out."""
    kill_at_start: bool = False
    """Whether the process is killed while the engine starts, as happens when the model does not fit into memory."""
    hang_on: tuple[str, ...] = ()
    """Ids of images for which the engine never replies to a request."""
    die_once_in: Location | None = None
    """Folder in which the engine records the images of `die_on` on which it has died. The engine dies only once on each
    of these images. None means that it dies every time."""

    @property
    def default_images_in_flight(self) -> int:
        return 64

    def identity_fields(self) -> dict[str, Json]:
        rates = {"inconsistent_rate", "wrong_rate", "unparsable_rate", "truncated_rate", "hostile_rate"}
        return self.model_dump(include=rates | {"reasoning_form"})


EngineConfig = Annotated[VllmEngineConfig | ScriptedEngineConfig, Field(discriminator="kind")]

ENGINE_CLASSES: tuple[type[EngineSettings], ...] = get_args(get_args(EngineConfig)[0])
"""Every kind of engine."""
