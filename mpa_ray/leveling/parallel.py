"""Data parallelism over the workers: DDP replicates the model, FSDP2 shards it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from mpa_ray.errors import RunError


def shard(model: Any, on_gpu: bool) -> Any:
    """Shard a model's parameters over all workers with `fully_shard`, layer by layer."""
    mesh = init_device_mesh("cuda" if on_gpu else "cpu", (torch.distributed.get_world_size(),))
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32) if on_gpu else None
    settings = {"mesh": mesh} if policy is None else {"mesh": mesh, "mp_policy": policy}
    for stack in [module for module in model.modules() if isinstance(module, nn.ModuleList)]:
        for layer in stack:
            if any(True for _ in layer.parameters()):
                fully_shard(layer, **settings)
    fully_shard(model, **settings)
    # This attribute keeps the Trainer from moving the model or wrapping it again.
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    base._is_distributed_loading_by_transformers = True
    return model


def check_parallel(model: Any, strategy: str, num_workers: int) -> None:
    """Check that the model is replicated or sharded as `level.parallel` says.

    Raises:
        RunError: the Trainer has prepared the model in another way.
    """
    is_sharded = [isinstance(parameter, DTensor) for parameter in model.parameters()]
    if strategy == "fsdp" and num_workers > 1:
        if not all(is_sharded):
            raise RunError(f"level.parallel = fsdp: {is_sharded.count(False)} parameters are not sharded.")
        return
    if any(is_sharded):
        raise RunError(f"level.parallel = {strategy}: {is_sharded.count(True)} parameters are sharded.")
    if num_workers > 1 and not isinstance(model, nn.parallel.DistributedDataParallel):
        raise RunError(f"level.parallel = ddp: {num_workers} workers train a {type(model).__name__} without DDP.")


def sum_over_workers(*values: float) -> list[float]:
    """The sum of each value over all workers; all workers call this together."""
    total = torch.tensor(values, dtype=torch.float64, device="cuda" if torch.cuda.is_available() else "cpu")
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(total)
    return [float(value) for value in total]
