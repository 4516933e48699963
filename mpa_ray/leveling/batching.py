"""Cut a step into micro-batches.

A step is a random set of samples that does not depend on the number of workers or the size of micro-batches. The loss
is normalised over the whole step, so cutting a step by length changes the padding, but not the gradient.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from mpa_ray.records import ParitySample

_PASS_COST = 1 / 16
"""The fixed cost of one forward pass, as a share of the token budget. An additional micro-batch is worth its cost only
if it saves more padding than this."""


@dataclass(frozen=True)
class TrainingRow:
    """A parity sample in an epoch."""

    sample: ParitySample
    num_tokens: int
    """An estimate of the number of tokens of prompt, image and answer."""
    supervised: bool = True
    """False for filler rows. These have no loss, and give every worker the same number of micro-batches."""

    @classmethod
    def of(cls, sample: ParitySample) -> TrainingRow:
        """Make the row of a sample.

        Its length is the prompt's length, which identification measured, plus one token per 3 bytes of the answer.
        """
        return cls(sample, sample.num_prompt_tokens + 2 + len(sample.answer.encode()) // 3)

    @property
    def uri(self) -> str:
        return self.sample.uri

    @property
    def content_sha256(self) -> str | None:
        """The SHA-256 digest of the file that the teacher saw; None for a sample of a labelled set."""
        return self.sample.content_sha256


MicroBatch = tuple[TrainingRow, ...]


def micro_batches(step: Sequence[TrainingRow], token_budget: int, num_workers: int) -> list[list[MicroBatch]]:
    """Cut a step into micro-batches of rows with similar lengths. All workers get the same number of micro-batches.

    A micro-batch has at most `token_budget` tokens, including padding; a longer row gets a micro-batch to itself.
    """
    cut = _split_until_divisible(_cheapest_cut(step, token_budget), num_workers)
    shortest = min(step, key=lambda row: row.num_tokens)
    while len(cut) % num_workers:
        cut.append((replace(shortest, supervised=False),))
    # The largest micro-batches are assigned first, each to the least loaded worker that still needs one.
    shares: list[list[MicroBatch]] = [[] for _ in range(num_workers)]
    for batch in sorted(cut, key=_num_computed_tokens, reverse=True):
        open_shares = [share for share in shares if len(share) < len(cut) // num_workers]
        min(open_shares, key=lambda share: sum(map(_num_computed_tokens, share))).append(batch)
    return shares


def _split_until_divisible(cut: list[MicroBatch], num_workers: int) -> list[MicroBatch]:
    """Halve the largest micro-batches until all workers get the same number, or every micro-batch has one row."""
    while len(cut) % num_workers and any(len(batch) > 1 for batch in cut):
        largest = max(range(len(cut)), key=lambda index: (len(cut[index]) > 1, _num_computed_tokens(cut[index])))
        batch = cut.pop(largest)
        cut += [batch[: len(batch) // 2], batch[len(batch) // 2 :]]
    return cut


def _cheapest_cut(step: Sequence[TrainingRow], token_budget: int) -> list[MicroBatch]:
    """Sort the rows by length, and cut them so that the total cost of tokens and forward passes is the lowest.

    The minimum is exact: dynamic programming tries every row at which the last micro-batch can start.
    """
    rows = sorted(step, key=lambda row: (-row.num_tokens, row.sample.annotation_id))
    lowest_cost = [0.0] + [math.inf] * len(rows)
    starts = [0] * (len(rows) + 1)
    for end in range(1, len(rows) + 1):
        for start in range(end - 1, -1, -1):
            computed = rows[start].num_tokens * (end - start)
            if computed > token_budget and end - start > 1:
                break
            cost = lowest_cost[start] + computed + _PASS_COST * token_budget
            if cost < lowest_cost[end]:
                lowest_cost[end] = cost
                starts[end] = start
    cut: list[MicroBatch] = []
    end = len(rows)
    while end:
        cut.append(tuple(rows[starts[end] : end]))
        end = starts[end]
    return cut[::-1]


def _num_computed_tokens(batch: MicroBatch) -> int:
    """The number of tokens of the batch, including padding."""
    return len(batch) * max(row.num_tokens for row in batch)
