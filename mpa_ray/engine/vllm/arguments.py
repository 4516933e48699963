"""The engine arguments, environment variables and adapters that vLLM is started with."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from mpa_ray.config import ModelConfig, VllmEngineConfig
from mpa_ray.engine.build import images_in_flight
from mpa_ray.engine.cores import claim_cores, threads_per_engine
from mpa_ray.engine.vllm.budgets import ImageBudget, batch_tokens
from mpa_ray.engine.vllm.rendering import has_renderer
from mpa_ray.models.checkpoints import weight_bytes
from mpa_ray.models.shared_engines import RANKS, Adapter

_USABLE_GPU_MEMORY = 0.9
"""The share of a GPU's memory that all of its engines use together: vLLM's default for a single engine."""


_CACHE_GIB = 4.0
"""vLLM's own default size of its cache for the tensors of images."""


def prepare_environment(model: ModelConfig, settings: VllmEngineConfig) -> None:
    """Set the environment variables that vLLM reads when it is imported. Variables that are already set are kept."""
    if "VLLM_CPU_OMP_THREADS_BIND" not in os.environ and not model.gpus_per_replica:
        # vLLM's own choice always leaves one core free, which is half of a machine with two cores.
        cores = sorted(os.sched_getaffinity(0))
        num_threads = settings.num_threads or threads_per_engine(
            len(cores), model.most_replicas, model.cpus_per_replica, weight_bytes(model.model)
        )
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, claim_cores(cores, num_threads)))
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(settings.cpu_kv_cache_gib))
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")


def engine_arguments(
    model: ModelConfig,
    settings: VllmEngineConfig,
    on_cpu: bool,
    adapters: Mapping[str, Adapter],
    default_tokens: int | None = None,
) -> dict[str, Any]:
    """The arguments of vLLM's `AsyncEngineArgs`. Arguments in `settings.engine_args` override those chosen here.

    Args:
        model: The model.
        settings: How vLLM serves it.
        on_cpu: Whether the engine runs on CPUs.
        adapters: The adapters that requests may name.
        default_tokens: vLLM's own default of `max_num_batched_tokens` for work in batches on this GPU; None on a CPU.
    """
    arguments: dict[str, Any] = {
        "model": model.model,
        "dtype": settings.dtype,
        "max_num_seqs": settings.max_num_seqs,
        "tensor_parallel_size": settings.tensor_parallel_size,
        "enable_prefix_caching": True,
        "limit_mm_per_prompt": {"image": 1, "video": 0},
        "disable_log_stats": True,
        # Otherwise a weak model fills a constrained reply with whitespace.
        "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True},
    }
    if 0 < model.gpus_per_replica < 1:
        arguments["gpu_memory_utilization"] = _USABLE_GPU_MEMORY * model.gpus_per_replica
    if on_cpu:
        # vLLM's default on CPUs is 128 tokens. A short prompt would not fill such a block, and only whole blocks are
        # cached.
        arguments |= {"block_size": 32, "enforce_eager": True}
    budget = ImageBudget.of(model, settings.processor_arguments)
    num_tokens = batch_tokens(budget, default_tokens)
    if num_tokens is not None:
        arguments["max_num_batched_tokens"] = num_tokens
    cache_gib = 1.0 if budget is None else budget.cache_gib(images_in_flight(model))
    # Images are rendered outside vLLM's engine, so its cache only has to hold the tensors of images in flight.
    arguments["mm_processor_cache_gb"] = cache_gib if has_renderer() else max(cache_gib, _CACHE_GIB)
    if settings.block_size is not None:
        arguments["block_size"] = settings.block_size
    if settings.max_model_len is not None:
        arguments["max_model_len"] = settings.max_model_len
    return arguments | settings.engine_args | _adapter_arguments(adapters)


def _adapter_arguments(adapters: Mapping[str, Adapter]) -> dict[str, Any]:
    if not adapters:
        return {}
    max_rank = max(adapter.rank for adapter in adapters.values())
    return {
        "enable_lora": True,
        # One slot more than there are adapters: on CPUs, a request without an adapter uses the last slot, so no adapter
        # may be in that slot.
        "max_loras": len(adapters) + 1,
        "max_lora_rank": next(rank for rank in RANKS if rank >= max_rank),
    }


def check_adapters(arguments: Mapping[str, Any], adapters: Mapping[str, Adapter]) -> None:
    """Check the adapters' settings, because a request for an adapter that vLLM does not serve would kill the engine.

    Raises:
        ValueError: this vLLM does not serve an adapter of this kind.
    """
    from vllm.config.lora import LoRAConfig
    from vllm.lora.peft_helper import PEFTHelper

    for adapter in adapters.values():
        limits = LoRAConfig(max_lora_rank=arguments["max_lora_rank"], max_loras=arguments["max_loras"])
        PEFTHelper.from_local_dir(adapter.model, None).validate_legal(limits)


def num_renderers(model: ModelConfig, settings: VllmEngineConfig, on_cpu: bool) -> int:
    """The number of rendering processes next to the engine; if it is 0, images are rendered in this process."""
    if not has_renderer():
        return 0
    if settings.num_renderers is not None:
        return settings.num_renderers
    return 0 if on_cpu else max(0, int(model.cpus_per_replica) - 1)


def caches_tensors(arguments: Mapping[str, Any]) -> bool:
    """Whether the engine caches images' tensors, and reports an error for a request whose tensors are not cached."""
    return bool(
        arguments.get("mm_processor_cache_gb", 0) > 0
        and arguments.get("mm_processor_cache_type", "lru") == "lru"
        and arguments.get("data_parallel_size", 1) == 1
    )
