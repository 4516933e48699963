"""The loss on answers, the same for every family of models."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch.nn.functional import cross_entropy

IGNORED_LABEL = -100

Reduction = Literal["token", "sample"]


def weight_of(labels: torch.Tensor, reduction: Reduction) -> int:
    """What a micro-batch counts for in its step: its supervised tokens, or the samples that have any.

    Args:
        labels: (batch, length); -100 where nothing is asked for.
        reduction: `token` weighs every token alike, `sample` every sample.
    """
    supervised = labels[:, 1:] != IGNORED_LABEL
    return int(supervised.sum() if reduction == "token" else supervised.any(dim=1).sum())


def answer_loss(model: Any, batch: dict[str, torch.Tensor], total_weight: float, reduction: Reduction) -> torch.Tensor:
    """A micro-batch's share of its step's mean cross-entropy: the shares of all micro-batches add up to the mean.

    Logits are computed where some row has a label, and nowhere else: a prompt is many times as long as an answer.

    Args:
        model: Takes the batch, without its labels, and `logits_to_keep`.
        batch: Inputs of the model with `labels` (batch, length); -100 everywhere but on answers.
        total_weight: Of all micro-batches of the step, on all workers; see `weight_of`.
        reduction: As there.
    """
    logits, targets = _at_labels(model, batch)
    supervised = targets != IGNORED_LABEL
    losses = cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED_LABEL, reduction="none")
    losses = losses.view_as(targets)
    if reduction == "sample":
        losses = losses / supervised.sum(dim=1, keepdim=True).clamp(min=1)
    return losses.sum() / total_weight


def num_answered(model: Any, batch: dict[str, torch.Tensor]) -> int:
    """How many of a batch's answers the model would write greedily: every token of them is its first choice."""
    logits, targets = _at_labels(model, batch)
    supervised = targets != IGNORED_LABEL
    is_right = (logits.argmax(dim=-1) == targets) | ~supervised
    return int((is_right.all(dim=1) & supervised.any(dim=1)).sum())


def _at_labels(model: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (batch, places, vocabulary) and labels (batch, places) where some row has a label."""
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    targets = batch["labels"][:, 1:]
    kept = (targets != IGNORED_LABEL).any(dim=0).nonzero().squeeze(1)
    if not len(kept):
        # Nothing to learn, but every worker has to go through the model.
        kept = torch.zeros(1, dtype=torch.long, device=targets.device)
    logits = model(**inputs, logits_to_keep=kept, use_cache=False).logits.float()
    return logits, targets[:, kept]
