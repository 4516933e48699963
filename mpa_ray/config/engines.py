"""Serving settings: one class for each kind of engine."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from mpa_ray.config.settings import Settings


class EngineSettings(Settings):
    """What the rest of the package has to know of a kind of engine."""

    has_checkpoint: ClassVar[bool]
    """Whether it loads a model's files, which can then be checked, trained and exported."""


class VllmEngineConfig(EngineSettings):
    """A vLLM engine in every replica."""

    has_checkpoint: ClassVar[bool] = True

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
    engine_args: dict[str, Any] = Field({})
    """Passed to vLLM's `AsyncEngineArgs` as they are."""


class ScriptedEngineConfig(EngineSettings):
    """A stand-in without a model whose replies follow from the image's bytes: for tests and for measuring the rest."""

    has_checkpoint: ClassVar[bool] = False

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
