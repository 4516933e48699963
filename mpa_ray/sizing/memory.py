"""Estimate whether a model fits its GPUs for serving and for training. Only starting the model proves that it fits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from mpa_ray.config import FullConfig, LevelConfig, LoraConfig, ModelConfig
from mpa_ray.config.engines import EngineSettings, KvCache
from mpa_ray.sizing.architecture import Architecture

FitResult = Literal["fits", "tight", "does not fit", "not checked"]

_GIB = 2**30
_UTILIZATION = 0.9
"""The share of a GPU's memory that vLLM takes by default, and that our engines on one GPU take together."""
ENGINE_ALLOWANCE_GIB = 2.0
"""Memory for an engine's CUDA graphs, and for its activations while it computes a batch of prompts."""
TRAINING_ALLOWANCE_GIB = 2.0
"""Memory for a worker's CUDA context and the kernels' work space, and memory that the allocator cannot use."""
_TRAINED_BYTES = 16
"""Bytes of a trained parameter: itself, its gradient and AdamW's two moments in float32 (arXiv 1910.02054, section
3.1)."""
_COPY_BYTES = 2
"""Bytes of a trained weight's copy in bfloat16, which autocast keeps from the forward to the backward pass. LoRA's
adapters are too small to count."""
_QUANTIZED_BYTES = 0.53
"""Bytes of a weight in NF4 with its scales (arXiv 2305.14314, section 3)."""
_TEXT_TOKENS = 200
"""Tokens of prompt and reply in addition to the image: a generous estimate."""


@dataclass(frozen=True)
class MemoryCheck:
    """What one GPU must hold for a model, in GiB by purpose, and whether that fits."""

    name: str
    result: FitResult
    gpu: str = ""
    available_gib: float | None = None
    needed_gib: dict[str, float] = field(default_factory=dict)
    detail: str = ""
    """Why the model does not fit, or what the remaining memory is enough for."""
    remedies: tuple[str, ...] = ()


@dataclass(frozen=True)
class _EngineMemory:
    """The memory of one GPU with an engine: how much is left for the KV cache, and how much the requests need."""

    model: ModelConfig
    cache: KvCache
    sizes: Architecture
    memory_gib: float
    image_tokens: int

    @property
    def engine(self) -> EngineSettings:
        return self.model.engine

    @property
    def gpu_share(self) -> float:
        """The share of a GPU that a replica has."""
        return min(1.0, self.model.gpus_per_replica)

    @property
    def available_gib(self) -> float:
        share = self.cache.memory_share
        return self.memory_gib * (_UTILIZATION * self.gpu_share if share is None else share)

    @property
    def longest_tokens(self) -> int:
        """Tokens of the longest sequence. An engine only starts if the cache can hold one such sequence."""
        return self.engine.max_sequence_tokens or self.sizes.max_position_embeddings

    @property
    def usual_tokens(self) -> int:
        """Tokens of a typical request."""
        return self.image_tokens + _TEXT_TOKENS

    @property
    def weight_bytes(self) -> float:
        return self.sizes.weight_bytes(self.engine.weight_format)

    def room_gib(self, num_gpus: int | None = None, weight_bytes: float | None = None) -> float:
        """The memory that is left for the KV cache; negative if the weights do not fit."""
        num_gpus = num_gpus or self.engine.num_gpus_per_copy
        weight_bytes = self.weight_bytes if weight_bytes is None else weight_bytes
        return self.available_gib - weight_bytes / _GIB / num_gpus - ENGINE_ALLOWANCE_GIB

    def cache_gib(self, num_tokens: float, num_gpus: int | None = None) -> float:
        """The memory of the KV cache for this number of tokens."""
        num_gpus = num_gpus or self.engine.num_gpus_per_copy
        return num_tokens * self.sizes.kv_bytes_per_token(self.cache.value_bytes, num_gpus) / _GIB

    @property
    def longest_gib(self) -> float:
        """The KV cache of one sequence of the greatest length."""
        return self.cache_gib(self.longest_tokens)

    @property
    def all_usual_gib(self) -> float:
        """The KV cache of as many typical requests as the engine decodes together."""
        return self.cache_gib(self.engine.num_decoded_together * self.usual_tokens)

    @property
    def num_cached_tokens(self) -> int:
        """How many tokens the KV cache holds."""
        return max(0, int(self.room_gib() / self.cache_gib(1)))


def check_engine(
    name: str, model: ModelConfig, sizes: Architecture, gpu: str, memory_gib: float, image_tokens: int | None = None
) -> MemoryCheck:
    """Check whether the weights, an allowance, and the KV cache of the longest request and of `max_num_seqs` typical
    ones fit.

    If they do not fit, the result says so and has remedies; no error is raised.

    Args:
        name: The name of the check in the output.
        model: The model.
        sizes: Its architecture.
        gpu: The kind of GPU.
        memory_gib: The memory of one GPU.
        image_tokens: Tokens of one image; None means the most that an image can have within the pixel limits.
    """
    cache = model.engine.kv_cache
    if cache is None or not model.gpus_per_replica:
        return MemoryCheck(name, "not checked", detail="no engine with a KV cache on a GPU")
    most_tokens = sizes.image_rule.most_tokens(model.min_pixels, model.max_pixels)
    memory = _EngineMemory(model, cache, sizes, memory_gib, image_tokens or most_tokens)
    needed_gib = {
        "weights": memory.weight_bytes / _GIB / model.engine.num_gpus_per_copy,
        "working memory": ENGINE_ALLOWANCE_GIB,
        "KV cache of the usual requests": memory.all_usual_gib,
    }
    room_gib, cached = memory.room_gib(), memory.num_cached_tokens
    if room_gib >= max(memory.longest_gib, memory.all_usual_gib):
        usual, longest = memory.usual_tokens, memory.longest_tokens
        detail = (
            f"{cached:,} tokens of KV cache: {cached // usual} requests of {usual} tokens at a time, "
            f"{cached // longest} of max_model_len {longest}; max_num_seqs {model.engine.num_decoded_together}"
        )
        return MemoryCheck(name, "fits", gpu, memory.available_gib, needed_gib, detail)
    remedies = tuple(_engine_remedies(memory))
    if room_gib >= memory.longest_gib:
        detail = "the KV cache is too small for max_num_seqs requests: some wait, or are computed twice"
        return MemoryCheck(name, "tight", gpu, memory.available_gib, needed_gib, detail, remedies)
    detail = (
        f"the engine would not start: {max(0.0, room_gib):.1f} GiB are left for the KV cache, and one request "
        f"of max_model_len {memory.longest_tokens} needs {memory.longest_gib:.1f} GiB"
    )
    return MemoryCheck(name, "does not fit", gpu, memory.available_gib, needed_gib, detail, remedies)


def _engine_remedies(memory: _EngineMemory) -> Iterator[str]:
    """Settings with which the engine would start, or would hold more requests."""
    engine, sizes = memory.engine, memory.sizes
    num_gpus, usual, longest = engine.num_gpus_per_copy, memory.usual_tokens, memory.longest_tokens
    room_gib, cached = memory.room_gib(), memory.num_cached_tokens
    starts = room_gib >= memory.longest_gib
    if starts:
        yield f"engine.max_num_seqs {max(1, cached // usual)}"
    elif room_gib >= memory.cache_gib(2 * usual):
        max_model_len = max(64, min(longest, cached) // 64 * 64)
        yield f"engine.max_model_len {max_model_len} or less (requests here take about {usual})"
    wanted_gib = max(memory.longest_gib, memory.all_usual_gib) if starts else memory.longest_gib
    if engine.weight_format == "float32" and memory.room_gib(weight_bytes=memory.weight_bytes / 2) >= wanted_gib / 2:
        yield "engine.dtype bfloat16"
    for wider in (2, 4, 8):
        divides = wider > num_gpus and sizes.num_heads % wider == 0
        if divides and memory.room_gib(wider) >= memory.cache_gib(longest, wider):
            yield f"engine.tensor_parallel_size {wider} with gpus_per_replica {wider}"
            break
    if memory.gpu_share < 1:
        yield "a whole GPU, with gpus_per_replica 1"
    quantized_room_gib = memory.room_gib(weight_bytes=memory.weight_bytes / 3)
    if sizes.weight_bits is None and quantized_room_gib >= memory.cache_gib(min(longest, 2 * usual)):
        yield "a checkpoint quantized to 4 bits (AWQ, GPTQ)"
    yield "GPUs with more memory"


def check_training(
    name: str, level: LevelConfig, sizes: Architecture, gpu: str, memory_gib: float, image_tokens: int
) -> MemoryCheck:
    """Check whether the weights, gradients, optimizer states and activations of one worker fit."""
    if not level.gpus_per_worker:
        return MemoryCheck(name, "not checked", detail="it trains on CPUs")
    needed_gib = training_gib(level, sizes, image_tokens)
    total_gib = sum(needed_gib.values())
    detail = f"{total_gib:.1f} GiB of {memory_gib:.0f}"
    if total_gib <= memory_gib:
        return MemoryCheck(name, "fits", gpu, memory_gib, needed_gib, detail)
    remedies = []
    room_gib = memory_gib - (total_gib - needed_gib["activations"])
    num_tokens = int(level.tokens_per_micro_batch * max(0.0, room_gib) / needed_gib["activations"])
    if num_tokens >= image_tokens + _TEXT_TOKENS:
        remedies.append(f"level.tokens_per_micro_batch {num_tokens // 64 * 64}")
    for remedy, changes in _cheaper_trainings(level):
        if sum(training_gib(level.model_copy(update=changes), sizes, image_tokens).values()) <= memory_gib:
            remedies.append(remedy)
    remedies.append("GPUs with more memory")
    return MemoryCheck(name, "does not fit", gpu, memory_gib, needed_gib, detail, tuple(remedies))


def _cheaper_trainings(level: LevelConfig) -> Iterator[tuple[str, dict[str, object]]]:
    """Changes that save memory. Each is returned as text for the user, and as fields of `level`."""
    checkpointing: dict[str, object] = {"gradient_checkpointing": True}
    if not level.gradient_checkpointing:
        yield "level.gradient_checkpointing true", checkpointing
    for num_workers in (2, 4, 8):
        if num_workers > level.num_workers:
            remedy = f"level.parallel fsdp with level.num_workers {num_workers} and level.gradient_checkpointing true"
            yield remedy, {**checkpointing, "parallel": "fsdp", "num_workers": num_workers}
            break
    if isinstance(level.method, FullConfig):
        yield "level.method.kind lora", {"method": LoraConfig()}
        yield "level.method.kind lora with level.gradient_checkpointing true", {**checkpointing, "method": LoraConfig()}
    elif not level.method.quantize and level.parallel == "ddp":
        quantized = level.method.model_copy(update={"quantize": True})
        yield "level.method.quantize true", {"method": quantized}
        yield (
            "level.method.quantize true with level.gradient_checkpointing true",
            {**checkpointing, "method": quantized},
        )


def training_gib(level: LevelConfig, sizes: Architecture, image_tokens: int) -> dict[str, float]:
    """The memory that one worker's GPU needs, in GiB by purpose."""
    method = level.method
    if isinstance(method, LoraConfig):
        # The frozen weights are in bfloat16, or their linear layers in 4 bits; adapters are in float32.
        in_layers = sizes.total - sizes.num_embeddings
        frozen = in_layers * _QUANTIZED_BYTES + sizes.num_embeddings * 2 if method.quantize else sizes.total * 2.0
        trained = sizes.num_adapter_parameters(method.components, method.rank) * _TRAINED_BYTES
    else:
        num_trained = sum(sizes.num_parameters(component) for component in method.components)
        frozen, trained = (sizes.total - num_trained) * 4.0, num_trained * (_TRAINED_BYTES + _COPY_BYTES)
    num_shards = level.num_workers if level.parallel == "fsdp" else 1
    return {
        "frozen weights": frozen / num_shards / _GIB,
        "trained weights, gradients and AdamW": trained / num_shards / _GIB,
        "activations": _activation_bytes(level, sizes, image_tokens) / _GIB,
        "working memory": TRAINING_ALLOWANCE_GIB,
    }


def _activation_bytes(level: LevelConfig, sizes: Architecture, image_tokens: int) -> float:
    """Bytes of a micro-batch's activations that are kept for the backward pass.

    Attention weights are not kept (SDPA, FlashAttention). With gradient checkpointing, only the inputs of all layers
    and the activations of one layer are kept. Logits are left out, because they are computed only for the answers.
    """
    tokens, num_layers = level.tokens_per_micro_batch, sizes.num_layers
    is_lora = isinstance(level.method, LoraConfig)
    per_layer = layer_bytes_per_token(sizes, is_lora)
    # The input of a layer has the same number format as the weights.
    layer_input = (2.0 if is_lora else 4.0) * sizes.hidden_size
    language = num_layers * layer_input + per_layer if level.gradient_checkpointing else num_layers * per_layer
    if "vision" not in level.method.components:
        return tokens * language
    patches = tokens * image_tokens / (image_tokens + _TEXT_TOKENS / 2) * sizes.patches_per_token
    # The tensors are counted as for the language model, but the MLP is ungated and has four times the width.
    per_vision_layer, depth = (22 + 8 + 24) * sizes.vision_width, sizes.vision_depth
    vision_input = 2.0 * sizes.vision_width
    vision = depth * vision_input + per_vision_layer if level.gradient_checkpointing else depth * per_vision_layer
    return tokens * language + patches * vision


def layer_bytes_per_token(sizes: Architecture, is_lora: bool) -> float:
    """Activations that one layer of the language model keeps for the backward pass, in bytes per token.

    The coefficients count the tensors that transformers saves in a Qwen2 layer under autocast to bfloat16: inputs and
    outputs of the norms, queries, keys and values, the output of attention, and four tensors of a gated MLP. A test
    compares them with the saved tensors.
    """
    queries, keys = sizes.num_heads * sizes.head_dim, sizes.num_kv_heads * sizes.head_dim
    if is_lora:
        return 22.0 * sizes.hidden_size + 4 * queries + 4 * keys + 8 * sizes.intermediate_size
    return 32.0 * sizes.hidden_size + 2 * queries + 4 * keys + 8 * sizes.intermediate_size
