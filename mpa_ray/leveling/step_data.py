"""The optimiser steps of one worker. Their images are read and rendered ahead of the training."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
from torch.utils.data import IterableDataset

from mpa_ray.corpus.read import Reader
from mpa_ray.imaging.decode import ImageProblem
from mpa_ray.leveling.batching import MicroBatch, TrainingRow, micro_batches
from mpa_ray.leveling.collator import AnswerCollator, Batch
from mpa_ray.leveling.loss import IGNORED_LABEL, Reduction, weight_of
from mpa_ray.pipeline.training_data import FetchedStep, decode, steps_with_images
from mpa_ray.records import Reason


@dataclass(frozen=True)
class StepCounts:
    """The counts of one step, on one worker or on all workers."""

    weight: int
    """See `weight_of`."""
    num_supervised_tokens: int
    num_samples: int
    """Samples that have a loss."""
    num_tokens: int
    num_computed_tokens: int
    """Tokens, including padding."""
    num_unreadable: int
    """Samples that have no loss, because their images cannot be read or have changed."""
    num_changed: int
    """The number of those samples whose images have changed since the teacher saw them."""


@dataclass(frozen=True)
class Step:
    """The micro-batches of one worker in one optimiser step."""

    batches: list[Batch]
    num_unreadable: int
    """Rows that have no loss, because their images cannot be read or have changed."""
    num_changed: int = 0
    """The number of those rows whose images have changed since the teacher saw them."""
    wait_s: float = 0.0
    """Seconds that the worker waited for the data of this step."""
    total_weight: float = 0.0
    """The weight of all workers' micro-batches; see `weight_of`."""

    def counts(self, reduction: Reduction) -> StepCounts:
        supervised = [batch["labels"][:, 1:] != IGNORED_LABEL for batch in self.batches]
        return StepCounts(
            weight=sum(weight_of(batch["labels"], reduction) for batch in self.batches),
            num_supervised_tokens=sum(int(mask.sum()) for mask in supervised),
            num_samples=sum(int(mask.any(dim=1).sum()) for mask in supervised),
            num_tokens=sum(int(batch["attention_mask"].sum()) for batch in self.batches),
            num_computed_tokens=sum(batch["attention_mask"].numel() for batch in self.batches),
            num_unreadable=self.num_unreadable,
            num_changed=self.num_changed,
        )


@dataclass(frozen=True)
class Share:
    """One worker's share of every step."""

    token_budget: int
    """Maximum number of tokens of a micro-batch, including padding."""
    rank: int
    num_workers: int

    def of(self, step: Sequence[TrainingRow]) -> list[MicroBatch]:
        return micro_batches(step, self.token_budget, self.num_workers)[self.rank]


@dataclass(frozen=True)
class StepLoader:
    """Reads and renders the rows of a worker's steps."""

    batch_size: int
    """Rows of a step, over all workers."""
    share: Share
    collator: AnswerCollator
    reader: Reader

    def load(
        self, num_steps: int, first: int, rows: Callable[[int, int], Iterable[Sequence[TrainingRow]]]
    ) -> Iterator[Step]:
        """Yield the steps of an epoch, which are read and rendered ahead of the training.

        Args:
            num_steps: The number of steps in the epoch.
            first: The step to start with, from 0.
            rows: Called with two step numbers; yields the rows of each step from the first number up to, but not
                including, the second. The calls are made in the Ray tasks that read the images.
        """
        share = self.share

        def batches(start: int, end: int) -> Iterator[list[MicroBatch]]:
            return (share.of(step) for step in rows(start, end))

        rows_per_step = max(1, self.batch_size // share.num_workers)
        fetched = steps_with_images(num_steps, first, batches, rows_per_step, self.reader)
        steps: Iterator[Any] = iter(
            fetched.iter_torch_batches(batch_size=1, collate_fn=self._collate, prefetch_batches=1)
        )
        while True:
            started = time.monotonic()
            step = next(steps, None)
            if step is None:
                return
            yield replace(step, wait_s=time.monotonic() - started)

    def _collate(self, columns: dict[str, Any]) -> Step:
        # More threads would compete with the model for the cores.
        torch.set_num_threads(1)
        return collated(decode(columns), self.collator)


def collated(
    step: FetchedStep[TrainingRow], collator: Callable[[Sequence[TrainingRow], Sequence[bytes]], Batch]
) -> Step:
    """Collate the micro-batches of a step into tensors."""
    contents = [[content if isinstance(content, bytes) else b"" for content in batch] for batch in step.contents]
    batches = [collator(*batch) for batch in zip(step.batches, contents, strict=True)]
    num_supervised = sum(row.supervised for batch in step.batches for row in batch)
    num_unreadable = num_supervised - sum(weight_of(batch["labels"], "sample") for batch in batches)
    return Step(batches, num_unreadable, _num_changed(step))


def _num_changed(step: FetchedStep[TrainingRow]) -> int:
    pairs = zip(chain.from_iterable(step.batches), chain.from_iterable(step.contents), strict=True)
    return sum(
        row.supervised and isinstance(content, ImageProblem) and content.reason == Reason.IMAGE_CHANGED
        for row, content in pairs
    )


class Steps(IterableDataset[Step]):
    """One worker's part of an epoch, starting at the step `first`."""

    def __init__(
        self, num_steps: int, rows: Callable[[int, int], Iterable[Sequence[TrainingRow]]], loader: StepLoader
    ) -> None:
        self.num_steps = num_steps
        self.first = 0
        """The step to start with."""
        self._rows = rows
        self._loader = loader

    @classmethod
    def of_rows(cls, rows: Sequence[TrainingRow], loader: StepLoader) -> Steps:
        """Steps over rows that are in memory."""
        size = loader.batch_size
        chunks = [rows[start : start + size] for start in range(0, len(rows), size)]
        return cls(len(chunks), lambda first, last: chunks[first:last], loader)

    def __iter__(self) -> Iterator[Step]:
        return self._loader.load(self.num_steps, self.first, self._rows)
