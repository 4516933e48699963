"""The plan of an epoch: which samples make a step, and how a step is cut into micro-batches. Pure functions.

A step is a random set of samples, the same whatever the number of workers and the size of micro-batches: the loss is
normalised over the whole step, so cutting it by length changes the padding and not the gradient.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mpa_ray.records import ParitySample

_LEAST_FULL = 0.6
"""Rows shorter than this share of a micro-batch's longest go into another one, where there are enough of them."""
_WORTH_A_PASS = 2
"""Rows that make a micro-batch of their own worth its overhead."""


@dataclass(frozen=True)
class TrainingRow:
    """A parity sample in its place of the epoch."""

    sample: ParitySample
    num_tokens: int
    """Of prompt, image and answer, about."""
    supervised: bool = True
    """False for rows that only keep a rank busy: they carry no loss."""

    @property
    def uri(self) -> str:
        return self.sample.uri


MicroBatch = tuple[TrainingRow, ...]


@dataclass(frozen=True)
class Epoch:
    """Every sample once."""

    steps: tuple[tuple[TrainingRow, ...], ...]
    num_too_long: int
    """Samples left out, since image tokens must not be cut."""

    @property
    def num_samples(self) -> int:
        return sum(map(len, self.steps))


def plan_epoch(
    samples: Sequence[ParitySample],
    num_tokens: Callable[[ParitySample], int],
    batch_size: int,
    seed: int,
    max_tokens: int | None = None,
) -> Epoch:
    """Cut the samples, in a seeded order that does not depend on theirs, into steps; the last may be smaller.

    Args:
        samples: D_PI and whatever is mixed in.
        num_tokens: Length of a sample's row.
        batch_size: Samples per step, over all workers.
        seed: Of the order.
        max_tokens: Longer rows are left out.
    """
    order = sorted(samples, key=lambda sample: sample.annotation_id)
    random.Random(seed).shuffle(order)
    sized = [TrainingRow(sample, num_tokens(sample)) for sample in order]
    rows = [row for row in sized if max_tokens is None or row.num_tokens <= max_tokens]
    steps = tuple(tuple(rows[start : start + batch_size]) for start in range(0, len(rows), batch_size))
    return Epoch(steps, len(sized) - len(rows))


def micro_batches(step: Sequence[TrainingRow], token_budget: int, num_workers: int) -> list[list[MicroBatch]]:
    """A step's micro-batches for each worker, as many for one as for another.

    Rows of like length go together, at most `token_budget` tokens with padding (a row that is longer goes alone).
    """
    cut = _cut(step, token_budget)
    while len(cut) % num_workers and any(len(batch) > 1 for batch in cut):
        largest = max(range(len(cut)), key=lambda index: (len(cut[index]) > 1, _padded(cut[index])))
        batch = cut.pop(largest)
        cut += [batch[: len(batch) // 2], batch[len(batch) // 2 :]]
    filler = min(step, key=lambda row: row.num_tokens)
    while len(cut) % num_workers:
        cut.append((TrainingRow(filler.sample, filler.num_tokens, supervised=False),))
    # The longest first, each to the worker that has least to do and room.
    shares: list[list[MicroBatch]] = [[] for _ in range(num_workers)]
    for batch in sorted(cut, key=_padded, reverse=True):
        open_shares = [share for share in shares if len(share) < len(cut) // num_workers]
        min(open_shares, key=lambda share: sum(map(_padded, share))).append(batch)
    return shares


def padding_share(batches: Sequence[MicroBatch]) -> float:
    """Of the tokens that are computed, those that only pad."""
    padded = sum(map(_padded, batches))
    return 1 - sum(row.num_tokens for batch in batches for row in batch) / padded if padded else 0.0


def _cut(step: Sequence[TrainingRow], token_budget: int) -> list[MicroBatch]:
    rows = sorted(step, key=lambda row: (-row.num_tokens, row.sample.annotation_id))
    cut: list[MicroBatch] = []
    start = 0
    while start < len(rows):
        longest = rows[start].num_tokens
        end = start + 1
        while end < len(rows) and longest * (end + 1 - start) <= token_budget:
            is_short = rows[end].num_tokens < _LEAST_FULL * longest
            if is_short and end - start >= _WORTH_A_PASS and len(rows) - end >= _WORTH_A_PASS:
                break
            end += 1
        cut.append(tuple(rows[start:end]))
        start = end
    return cut


def _padded(batch: MicroBatch) -> int:
    return len(batch) * max(row.num_tokens for row in batch)
