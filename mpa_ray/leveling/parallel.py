"""How a model lies on the workers: whole on each (DDP), or in shards (FSDP2)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor


def shard(model: Any, on_gpu: bool) -> Any:
    """Cut a model's parameters over all workers by `fully_shard`, layer by layer."""
    mesh = init_device_mesh("cuda" if on_gpu else "cpu", (torch.distributed.get_world_size(),))
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32) if on_gpu else None
    settings = {"mesh": mesh} if policy is None else {"mesh": mesh, "mp_policy": policy}
    for stack in [module for module in model.modules() if isinstance(module, nn.ModuleList)]:
        for layer in stack:
            if any(True for _ in layer.parameters()):
                fully_shard(layer, **settings)
    fully_shard(model, **settings)
    # The Trainer then neither moves the model nor wraps it once more.
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    base._is_distributed_loading_by_transformers = True
    return model


def check_parallel(model: Any, strategy: str, num_workers: int) -> None:
    """Raises AssertionError where the Trainer did something else than was asked for."""
    sharded = [isinstance(parameter, DTensor) for parameter in model.parameters()]
    if strategy == "fsdp" and num_workers > 1:
        assert all(sharded), f"{sharded.count(False)} parameters are not sharded"
        return
    assert not any(sharded), "parameters are sharded unasked"
    if num_workers > 1:
        assert isinstance(model, nn.parallel.DistributedDataParallel), (
            f"{type(model).__name__} on {num_workers} workers"
        )
