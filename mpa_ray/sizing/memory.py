"""Whether a model fits the GPUs that it is given, to serve and to train. Estimates: a start is the proof."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from mpa_ray.config import FullConfig, LevelConfig, LoraConfig, ModelConfig, VllmEngineConfig
from mpa_ray.sizing.architecture import Architecture

FitResult = Literal["fits", "tight", "does not fit", "not checked"]

_GIB = 2**30
_UTILIZATION = 0.9
"""vLLM's own share of a GPU, and what our engines take together."""
ENGINE_ALLOWANCE_GIB = 2.0
"""For an engine's activations while it computes a batch of prompts, and its CUDA graphs."""
TRAINING_ALLOWANCE_GIB = 2.0
"""For a worker's CUDA context, kernels' work space and what the allocator cannot use."""
_TRAINED_BYTES = 16
"""Of a trained parameter: itself, its gradient and AdamW's two moments in float32 (arXiv 1910.02054, section 3.1)."""
_COPY_BYTES = 2
"""Of a trained weight once more in bfloat16: autocast keeps it from the pass forwards to the one backwards. LoRA's
adapters are too small to count."""
_QUANTIZED_BYTES = 0.53
"""Of a weight in NF4 with its scales (arXiv 2305.14314, section 3)."""
_TEXT_TOKENS = 200
"""Of prompt and reply beside the image, amply."""


@dataclass(frozen=True)
class MemoryCheck:
    """What one GPU holds of a model, in GiB by purpose, and what follows."""

    name: str
    verdict: FitResult
    gpu: str = ""
    available_gib: float | None = None
    needed_gib: dict[str, float] = field(default_factory=dict)
    told: str = ""
    """Why, or how much is left for what."""
    remedies: tuple[str, ...] = ()


def check_engine(
    name: str, model: ModelConfig, sizes: Architecture, gpu: str, memory_gib: float, image_tokens: int | None = None
) -> MemoryCheck:
    """Weights, an allowance, and the KV cache that is left for `max_num_seqs` requests.

    Raises nothing: a model that does not fit is a verdict, with its remedies.
    """
    engine = model.engine
    if not isinstance(engine, VllmEngineConfig) or not model.gpus_per_replica:
        return MemoryCheck(name, "not checked", told="no vLLM engine on a GPU")
    share = model.gpus_per_replica if model.gpus_per_replica < 1 else 1.0
    available = memory_gib * float(engine.engine_args.get("gpu_memory_utilization", _UTILIZATION * share))
    # A pass holds a whole sequence, or vLLM does not start.
    longest = engine.max_model_len or sizes.max_position_embeddings
    usual = (image_tokens or sizes.image_tokens(model.max_pixels)) + _TEXT_TOKENS
    value_bytes = 1.0 if "fp8" in str(engine.engine_args.get("kv_cache_dtype", "auto")) else _value_bytes(engine.dtype)

    def left(num_gpus: int, weight_bytes: float) -> float:
        return available - weight_bytes / _GIB / num_gpus - ENGINE_ALLOWANCE_GIB

    def needs(num_tokens: float, num_gpus: int) -> float:
        return num_tokens * sizes.kv_bytes_per_token(value_bytes, num_gpus) / _GIB

    num_gpus, weights = engine.tensor_parallel_size, sizes.weight_bytes(engine.dtype)
    room = left(num_gpus, weights)
    whole, all_usual = needs(longest, num_gpus), needs(engine.max_num_seqs * usual, num_gpus)
    needed = {
        "weights": weights / _GIB / num_gpus,
        "working memory": ENGINE_ALLOWANCE_GIB,
        "KV cache of the usual requests": all_usual,
    }
    cached = max(0, int(room / needs(1, num_gpus)))
    told = (
        f"{cached:,} tokens of KV cache: {cached // usual} requests of {usual} tokens at a time, "
        f"{cached // longest} of max_model_len {longest}; max_num_seqs {engine.max_num_seqs}"
    )
    if room >= max(whole, all_usual):
        return MemoryCheck(name, "fits", gpu, available, needed, told)
    wanted = max(whole, all_usual) if room >= whole else whole
    remedies = []
    if room >= whole:
        remedies.append(f"engine.max_num_seqs {max(1, cached // usual)}")
    elif room >= needs(2 * usual, num_gpus):
        remedies.append(
            f"engine.max_model_len {max(64, min(longest, cached) // 64 * 64)} or less "
            f"(requests here take about {usual})"
        )
    if engine.dtype == "float32" and left(num_gpus, weights / 2) >= wanted / 2:
        remedies.append("engine.dtype bfloat16")
    wider = next(
        (n for n in (2, 4, 8) if n > num_gpus and sizes.num_heads % n == 0 and left(n, weights) >= needs(longest, n)),
        None,
    )
    if wider is not None:
        remedies.append(f"engine.tensor_parallel_size {wider} with gpus_per_replica {wider}")
    if share < 1:
        remedies.append("a whole GPU (gpus_per_replica 1)")
    if sizes.weight_bits is None and left(num_gpus, weights / 3) >= needs(min(longest, 2 * usual), num_gpus):
        remedies.append("a checkpoint quantized to 4 bits (AWQ, GPTQ)")
    remedies.append("GPUs with more memory")
    tight = room >= whole
    why = (
        "too little KV cache for so many requests: some wait, or are computed twice"
        if tight
        else f"vLLM would not start: {max(0.0, room):.1f} GiB are left for a KV cache of {whole:.1f} GiB, one "
        f"request of max_model_len {longest}"
    )
    return MemoryCheck(name, "tight" if tight else "does not fit", gpu, available, needed, why, tuple(remedies))


def _value_bytes(dtype: str) -> float:
    return 4.0 if dtype == "float32" else 2.0


def check_training(
    name: str, level: LevelConfig, sizes: Architecture, gpu: str, memory_gib: float, image_tokens: int
) -> MemoryCheck:
    """Weights, gradients, optimizer states and activations of one worker."""
    if not level.gpus_per_worker:
        return MemoryCheck(name, "not checked", told="it trains on CPUs")
    needed = training_gib(level, sizes, image_tokens)
    total = sum(needed.values())
    check = MemoryCheck(name, "fits", gpu, memory_gib, needed, f"{total:.1f} GiB of {memory_gib:.0f}")
    if total <= memory_gib:
        return check
    remedies = []
    fixed = total - needed["activations"]
    fitting = int(level.tokens_per_micro_batch * max(0.0, memory_gib - fixed) / needed["activations"])
    if fitting >= image_tokens + _TEXT_TOKENS:
        remedies.append(f"level.tokens_per_micro_batch {fitting // 64 * 64}")
    for told, change in _changes(level):
        if sum(training_gib(level.model_copy(update=change), sizes, image_tokens).values()) <= memory_gib:
            remedies.append(told)
    remedies.append("GPUs with more memory")
    return MemoryCheck(
        name, "does not fit", gpu, memory_gib, needed, f"{total:.1f} GiB of {memory_gib:.0f}", tuple(remedies)
    )


def _changes(level: LevelConfig) -> Iterator[tuple[str, dict[str, object]]]:
    """Settings that take less memory, as a user writes them."""
    sparing: dict[str, object] = {"gradient_checkpointing": True}
    if not level.gradient_checkpointing:
        yield "level.gradient_checkpointing true", sparing
    for num_workers in (2, 4, 8):
        if num_workers > level.num_workers:
            told = f"level.parallel fsdp with num_workers {num_workers} and gradient_checkpointing true"
            yield told, {**sparing, "parallel": "fsdp", "num_workers": num_workers}
            break
    if isinstance(level.method, FullConfig):
        yield "level.method lora", {"method": LoraConfig()}
        yield "level.method lora with gradient_checkpointing true", {**sparing, "method": LoraConfig()}
    elif not level.method.quantize and level.parallel == "ddp":
        quantized = level.method.model_copy(update={"quantize": True})
        yield "level.method.quantize true", {"method": quantized}
        yield "level.method.quantize true with gradient_checkpointing true", {**sparing, "method": quantized}


def training_gib(level: LevelConfig, sizes: Architecture, image_tokens: int) -> dict[str, float]:
    """What a worker's GPU holds, in GiB by purpose."""
    method = level.method
    if isinstance(method, LoraConfig):
        # The frozen weights in bfloat16, or their linear layers in 4 bits; adapters in float32.
        in_layers = sizes.total - sizes.num_embeddings
        weights = in_layers * _QUANTIZED_BYTES + sizes.num_embeddings * 2 if method.quantize else sizes.total * 2.0
        trained = sizes.num_adapter_parameters(method.components, method.rank)
        held = trained * _TRAINED_BYTES
    else:
        trained = sum(sizes.num_parameters(component) for component in method.components)
        weights, held = (sizes.total - trained) * 4.0, trained * (_TRAINED_BYTES + _COPY_BYTES)
    shards = level.num_workers if level.parallel == "fsdp" else 1
    return {
        "frozen weights": weights / shards / _GIB,
        "trained weights, gradients and AdamW": held / shards / _GIB,
        "activations": _activation_bytes(level, sizes, image_tokens) / _GIB,
        "working memory": TRAINING_ALLOWANCE_GIB,
    }


def _activation_bytes(level: LevelConfig, sizes: Architecture, image_tokens: int) -> float:
    """Of a micro-batch, kept for the pass backwards.

    Attention weights are not kept (SDPA, FlashAttention). With checkpointed activations it is each layer's input, and
    one layer whole. Logits are computed at the answers alone and left out.
    """
    tokens, layers = level.tokens_per_micro_batch, sizes.num_layers
    is_lora = isinstance(level.method, LoraConfig)
    whole = layer_bytes_per_token(sizes, is_lora)
    # What is carried from layer to layer has the weights' format.
    carried = (2.0 if is_lora else 4.0) * sizes.hidden_size
    kept = layers * carried + whole if level.gradient_checkpointing else layers * whole
    if "vision" not in level.method.components:
        return tokens * kept
    patches = tokens * image_tokens / (image_tokens + _TEXT_TOKENS / 2) * sizes.patches_per_token
    # As of the language model, with an MLP of four times the width that is not gated.
    seen_whole = (22 + 8 + 24) * sizes.vision_width
    depth = sizes.vision_depth
    seen = depth * 2.0 * sizes.vision_width + seen_whole if level.gradient_checkpointing else depth * seen_whole
    return tokens * kept + patches * seen


def layer_bytes_per_token(sizes: Architecture, is_lora: bool) -> float:
    """Activations that one layer of the language model keeps for the pass backwards, in bytes per token.

    Counted by the tensors that transformers saves in a Qwen2 layer under autocast to bfloat16: what norms take in and
    give out, queries, keys and values, what attention gives, and four of a gated MLP; a test counts again.
    """
    queries, keys = sizes.num_heads * sizes.head_dim, sizes.num_kv_heads * sizes.head_dim
    if is_lora:
        return 22.0 * sizes.hidden_size + 4 * queries + 4 * keys + 8 * sizes.intermediate_size
    return 32.0 * sizes.hidden_size + 2 * queries + 4 * keys + 8 * sizes.intermediate_size
