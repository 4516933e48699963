"""The loss on answers, the same for every model family."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch.nn.functional import cross_entropy

IGNORED_LABEL = -100

Reduction = Literal["token", "sample"]


def weight_of(labels: torch.Tensor, reduction: Reduction) -> int:
    """The weight of a micro-batch in its step: the number of its supervised tokens, or of samples with such tokens.

    Args:
        labels: (batch, length); -100 for tokens without loss.
        reduction: `token` weights every token equally, `sample` every sample.
    """
    supervised = labels[:, 1:] != IGNORED_LABEL
    return int(supervised.sum() if reduction == "token" else supervised.any(dim=1).sum())


def answer_loss(model: Any, batch: dict[str, torch.Tensor], total_weight: float, reduction: Reduction) -> torch.Tensor:
    """A micro-batch's share of the mean cross-entropy of its step: the shares of all micro-batches add up to the mean.

    Logits are computed only at positions where some row has a label, since a prompt is many times as long as an answer.

    Args:
        model: Takes the batch without its labels, and `logits_to_keep`.
        batch: Inputs of the model with `labels` (batch, length); -100 everywhere except on answers.
        total_weight: The sum of `weight_of` over all micro-batches of the step, on all workers.
        reduction: As in `weight_of`.
    """
    logits, targets = _at_labels(model, batch)
    supervised = targets != IGNORED_LABEL
    losses = cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED_LABEL, reduction="none")
    losses = losses.view_as(targets)
    if reduction == "sample":
        losses = losses / supervised.sum(dim=1, keepdim=True).clamp(min=1)
    return losses.sum() / total_weight


def num_answered(model: Any, batch: dict[str, torch.Tensor]) -> int:
    """The number of answers in a batch that greedy decoding would give: those whose tokens all have the top logit."""
    logits, targets = _at_labels(model, batch)
    supervised = targets != IGNORED_LABEL
    is_right = (logits.argmax(dim=-1) == targets) | ~supervised
    return int((is_right.all(dim=1) & supervised.any(dim=1)).sum())


def _at_labels(model: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (batch, positions, vocabulary) and labels (batch, positions) at positions where some row has a label."""
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    targets = batch["labels"][:, 1:]
    kept = (targets != IGNORED_LABEL).any(dim=0).nonzero().squeeze(1)
    if not len(kept):
        # There is nothing to learn, but every worker must run the model as often as the others.
        kept = torch.zeros(1, dtype=torch.long, device=targets.device)
    logits = model(**inputs, logits_to_keep=kept, use_cache=False).logits.float()
    return logits, targets[:, kept]
