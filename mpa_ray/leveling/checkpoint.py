"""Training checkpoints that can be loaded with any number of workers, whether the model is replicated or sharded."""

from __future__ import annotations

import json
from dataclasses import dataclass
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

from mpa_ray.run.checkpoint_files import PROGRESS

_SCHEDULER = "scheduler.pt"
_LOCAL = StateDictOptions(ignore_frozen_params=True, strict=False)
_FULL = StateDictOptions(ignore_frozen_params=True, strict=False, full_state_dict=True, cpu_offload=True)


@dataclass(frozen=True)
class TrainingProgress:
    """What a checkpoint stores in addition to the weights and the states of the optimizer and the scheduler."""

    num_unreadable: int
    """The number of samples so far, on all workers, whose images could not be read or have changed."""
    num_retained_before: int | None
    """Retained pairs that the student answered before training; None until they are counted."""
    best_loss: float
    """The lowest loss so far on the held-out samples; infinite before the first measurement."""
    num_worse: int
    """The number of evaluations since the one with the lowest loss."""
    has_best: bool
    """Whether the checkpoint holds the weights with the lowest loss."""
    num_changed: int = 0
    """The number of samples in `num_unreadable` whose images have changed since the teacher saw them."""

    def save(self, folder: Path) -> None:
        content = {name: value for name, value in vars(self).items() if name != "num_retained_before"}
        content["answered"] = {} if self.num_retained_before is None else {"before": self.num_retained_before}
        (folder / PROGRESS).write_text(json.dumps(content))

    @classmethod
    def load(cls, folder: Path) -> TrainingProgress:
        content = json.loads((folder / PROGRESS).read_text())
        return cls(num_retained_before=content.pop("answered").get("before"), **content)


def save(
    folder: Path, model: Any, optimizer: torch.optim.Optimizer, scheduler: Any, best: dict[str, torch.Tensor]
) -> None:
    """Write this worker's part of a checkpoint; all workers call this together.

    Args:
        folder: A local folder of this worker.
        model: The model in training, wrapped or sharded.
        optimizer: The optimizer of its trainable parameters.
        scheduler: The optimizer's learning rate scheduler.
        best: The best weights so far, from `trainable_weights`; empty if no samples are held out.
    """
    weights, states = get_state_dict(model, optimizer, options=_LOCAL)
    dcp.save({"model": weights, "optimizer": states, **({"best": best} if best else {})}, checkpoint_id=folder)
    if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
        torch.save(scheduler.state_dict(), folder / _SCHEDULER)


def load(
    folder: Path, model: Any, optimizer: torch.optim.Optimizer, scheduler: Any, has_best: bool
) -> dict[str, torch.Tensor]:
    """Load a complete checkpoint, which any number of workers may have written. Return the best weights in it."""
    weights, states = get_state_dict(model, optimizer, options=_LOCAL)
    state: dict[str, Any] = {"model": weights, "optimizer": states}
    if has_best:
        state["best"] = trainable_weights(model)
    dcp.load(state, checkpoint_id=folder)
    set_state_dict(
        model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"], options=_LOCAL
    )
    scheduler.load_state_dict(torch.load(folder / _SCHEDULER, weights_only=True))
    best: dict[str, torch.Tensor] = state.get("best", {})
    return best


def trainable_weights(model: Any) -> dict[str, torch.Tensor]:
    """A copy of this worker's part of the trainable weights."""
    return {name: tensor.detach().clone() for name, tensor in get_model_state_dict(model, options=_LOCAL).items()}


def restore_weights(model: Any, weights: dict[str, torch.Tensor]) -> None:
    """Load weights, which come from `trainable_weights`, into the model."""
    set_model_state_dict(model, weights, options=_LOCAL)


def full_weights(model: Any) -> dict[str, torch.Tensor]:
    """Return the unsharded trainable weights on rank 0, and none on other ranks; all workers call this together."""
    weights: dict[str, torch.Tensor] = get_model_state_dict(model, options=_FULL)
    return weights
