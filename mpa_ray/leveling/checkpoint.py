"""Checkpoints of a training, in a form that fits any number of workers and either way of spreading a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)

_SCHEDULER = "scheduler.pt"
_OPTIONS = StateDictOptions(ignore_frozen_params=True, strict=False)
_WHOLE = StateDictOptions(ignore_frozen_params=True, strict=False, full_state_dict=True, cpu_offload=True)


def save(folder: Path, model: Any, optimizer: torch.optim.Optimizer, scheduler: Any, best: dict[str, Any]) -> None:
    """Write this worker's part of a checkpoint; all workers call it together, each with a folder of its own.

    Args:
        folder: Where to.
        model: As it is trained, wrapped or sharded.
        optimizer: Of its trainable parameters.
        scheduler: Of the optimizer.
        best: The weights to be exported so far, by `trainable`; empty without a held-out slice.
    """
    weights, states = get_state_dict(model, optimizer, options=_OPTIONS)
    dcp.save({"model": weights, "optimizer": states, **({"best": best} if best else {})}, checkpoint_id=folder)
    if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
        torch.save(scheduler.state_dict(), folder / _SCHEDULER)


def load(folder: Path, model: Any, optimizer: torch.optim.Optimizer, scheduler: Any, has_best: bool) -> dict[str, Any]:
    """Take up a whole checkpoint, whatever number of workers wrote it; gives the best weights that it held."""
    weights, states = get_state_dict(model, optimizer, options=_OPTIONS)
    state: dict[str, Any] = {"model": weights, "optimizer": states}
    if has_best:
        state["best"] = trainable(model)
    dcp.load(state, checkpoint_id=folder)
    set_state_dict(
        model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"], options=_OPTIONS
    )
    scheduler.load_state_dict(torch.load(folder / _SCHEDULER, weights_only=True))
    best: dict[str, Any] = state.get("best", {})
    return best


def trainable(model: Any) -> dict[str, Any]:
    """A copy of this worker's part of the trainable weights."""
    return {name: tensor.detach().clone() for name, tensor in get_model_state_dict(model, options=_OPTIONS).items()}


def restore(model: Any, weights: dict[str, Any]) -> None:
    """The inverse of `trainable`."""
    set_model_state_dict(model, weights, options=_OPTIONS)


def whole(model: Any) -> dict[str, torch.Tensor]:
    """The trainable weights as ordinary tensors, on rank 0; all workers call it together."""
    found: dict[str, torch.Tensor] = get_model_state_dict(model, options=_WHOLE)
    return found
