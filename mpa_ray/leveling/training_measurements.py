"""Measurements during training: held-out samples choose the weights to export, retained pairs show forgetting."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch

from mpa_ray.leveling.checkpoint import trainable_weights
from mpa_ray.leveling.collator import Batch
from mpa_ray.leveling.loss import Reduction, answer_loss, num_answered, weight_of
from mpa_ray.leveling.parallel import sum_over_workers
from mpa_ray.leveling.step_data import Steps

ToDevice = Callable[[Batch], Batch]


def mean_loss(model: Any, steps: Steps, reduction: Reduction, to_device: ToDevice) -> float:
    """The mean loss over the samples of all workers; all workers call this together."""
    model.eval()
    loss = weight = 0.0
    with torch.no_grad():
        for batch in _batches(steps, to_device):
            loss += float(answer_loss(model, batch, 1.0, reduction))
            weight += weight_of(batch["labels"], reduction)
    loss, weight = sum_over_workers(loss, weight)
    return loss / max(weight, 1.0)


def total_answered(model: Any, steps: Steps, to_device: ToDevice) -> int:
    """The number of all workers' samples that the model answers word for word; all workers call this together."""
    model.eval()
    with torch.no_grad():
        answered = sum(num_answered(model, batch) for batch in _batches(steps, to_device))
    (total,) = sum_over_workers(answered)
    return int(total)


def _batches(steps: Steps, to_device: ToDevice) -> Iterator[Batch]:
    return (to_device(batch) for step in steps for batch in step.batches)


class BestWeights:
    """The weights with the lowest loss on the held-out samples so far."""

    def __init__(self) -> None:
        self.weights: dict[str, torch.Tensor] = {}
        """This worker's part of the weights; empty before the first loss."""
        self.loss = math.inf
        self.num_worse = 0
        """The number of evaluations since the one with the lowest loss."""

    def update(self, loss: float, model: Any) -> bool:
        """If the loss is the lowest so far, keep a copy of the model's weights and return True."""
        if loss < self.loss:
            self.loss = loss
            self.num_worse = 0
            self.weights = trainable_weights(model)
            return True
        self.num_worse += 1
        return False
