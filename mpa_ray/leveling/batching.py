"""The order of an epoch, and how a step is cut into micro-batches.

A step is a random set of samples, the same whatever the number of workers and the size of micro-batches: the loss is
normalised over the whole step, so cutting it by length changes the padding and not the gradient.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from mpa_ray.leveling.replay import sampling_key
from mpa_ray.records import ParitySample

_NUM_PARTS = 64
_PASS_COST = 1 / 16
"""What one more pass through the model costs, as a share of the budget: below it, saved padding is not worth a cut."""


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


def row_of(sample: ParitySample) -> TrainingRow:
    """With about its length: the prompt as identification measured it, and a token for 3 bytes of answer."""
    return TrainingRow(sample, sample.num_prompt_tokens + 2 + len(sample.answer.encode()) // 3)


def in_seeded_order(samples: Iterable[ParitySample], seed: int, scratch: Path) -> Iterator[ParitySample]:
    """All samples in an order that depends on the seed and their ids alone; a part of them is in memory at a time."""
    parts = [scratch / f"{number}" for number in range(_NUM_PARTS)]
    with ExitStack() as files:
        opened = [files.enter_context(part.open("wb")) for part in parts]
        for sample in samples:
            lot = sampling_key(sample.annotation_id, seed, "order")
            pickle.dump((lot, sample), opened[lot * _NUM_PARTS >> 64])
    for part in parts:
        with part.open("rb") as file:
            found = []
            while file.peek(1):
                found.append(pickle.load(file))
        yield from (sample for _, sample in sorted(found, key=lambda entry: (entry[0], entry[1].annotation_id)))


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


def _cut(step: Sequence[TrainingRow], token_budget: int) -> list[MicroBatch]:
    """The cheapest cut of the rows in order of length: computed tokens, and the cost of each pass (exact, by dynamic
    programming over where the last micro-batch begins)."""
    rows = sorted(step, key=lambda row: (-row.num_tokens, row.sample.annotation_id))
    least = [0.0] + [math.inf] * len(rows)
    begins = [0] * (len(rows) + 1)
    for end in range(1, len(rows) + 1):
        for start in range(end - 1, -1, -1):
            computed = rows[start].num_tokens * (end - start)
            if computed > token_budget and end - start > 1:
                break
            cost = least[start] + computed + _PASS_COST * token_budget
            if cost < least[end]:
                least[end], begins[end] = cost, start
    cut: list[MicroBatch] = []
    end = len(rows)
    while end:
        cut.append(tuple(rows[begins[end] : end]))
        end = begins[end]
    return cut[::-1]


def _padded(batch: MicroBatch) -> int:
    return len(batch) * max(row.num_tokens for row in batch)
