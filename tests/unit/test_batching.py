"""How a step is cut into micro-batches: every row once, equal shares for the workers, little padding."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpa_ray.leveling.batching import MicroBatch, TrainingRow, micro_batches
from mpa_ray.records import ParitySample


def samples(*lengths: int) -> list[ParitySample]:
    return [
        ParitySample(f"{n:04d}#0", f"{n}", f"/{n}", "?", "a", "b", None, length) for n, length in enumerate(lengths)
    ]


def row(number: int, tokens: int) -> TrainingRow:
    return TrainingRow(samples(*[0] * number, tokens)[-1], tokens)


LENGTHS = st.lists(st.integers(1, 900), min_size=1, max_size=40)


@given(LENGTHS, st.integers(1, 3000), st.integers(1, 4))
def test_micro_batches_hold_every_row_once_within_the_budget(lengths: list[int], budget: int, workers: int) -> None:
    step = [row(n, tokens) for n, tokens in enumerate(lengths)]
    shares = micro_batches(step, budget, workers)
    assert len(shares) == workers
    assert len({len(share) for share in shares}) == 1
    flat = [batch for share in shares for batch in share]
    supervised = [r.sample.annotation_id for batch in flat for r in batch if r.supervised]
    assert Counter(supervised) == Counter(r.sample.annotation_id for r in step)
    for batch in flat:
        assert len(batch) == 1 or len(batch) * max(r.num_tokens for r in batch) <= budget
    # There are fewer filler rows than workers.
    assert sum(not r.supervised for batch in flat for r in batch) < workers


def test_steps_do_not_depend_on_the_number_of_workers() -> None:
    step = [row(n, 50 + 7 * n) for n in range(24)]
    for workers in (1, 2, 3):
        flat = [r for share in micro_batches(step, 400, workers) for batch in share for r in batch if r.supervised]
        assert {r.sample.annotation_id for r in flat} == {r.sample.annotation_id for r in step}


def padding_share(batches: Sequence[MicroBatch]) -> float:
    """Padding as a share of the computed tokens."""
    computed = sum(len(batch) * max(r.num_tokens for r in batch) for batch in batches)
    return 1 - sum(r.num_tokens for batch in batches for r in batch) / computed


@pytest.mark.parametrize("workers", [1, 2])
def test_sorting_by_length_saves_padding(workers: int) -> None:
    rng = random.Random(0)
    step = [row(n, rng.choice([80, 120, 300, 700])) for n in range(64)]
    cut = [batch for share in micro_batches(step, 8 * 700, workers) for batch in share]
    at_random: list[MicroBatch] = [tuple(step[start : start + 8]) for start in range(0, 64, 8)]
    assert padding_share(cut) < 0.1 < 0.4 < padding_share(at_random)


def test_workers_get_similar_amounts_of_work() -> None:
    step = [row(n, tokens) for n, tokens in enumerate([500] * 8 + [100] * 40)]
    first, second = (sum(len(b) * b[0].num_tokens for b in share) for share in micro_batches(step, 1000, 2))
    assert abs(first - second) <= 1000


@given(LENGTHS, st.integers(1, 3000))
def test_no_cut_of_rows_sorted_by_length_is_cheaper(lengths: list[int], budget: int) -> None:
    step = [row(n, tokens) for n, tokens in enumerate(lengths[:9])]
    (cut,) = micro_batches(step, budget, 1)
    ordered = sorted((r.num_tokens for r in step), reverse=True)

    def cost(batches: list[list[int]]) -> float:
        if any(len(batch) > 1 and len(batch) * batch[0] > budget for batch in batches):
            return math.inf
        return sum(len(batch) * batch[0] for batch in batches) + len(batches) * budget / 16

    def cuts(rows: list[int]) -> Iterator[list[list[int]]]:
        if not rows:
            yield []
        for size in range(1, len(rows) + 1):
            yield from ([rows[:size], *rest] for rest in cuts(rows[size:]))

    lengths_of_cut = sorted((sorted((r.num_tokens for r in batch), reverse=True) for batch in cut), reverse=True)
    assert cost(lengths_of_cut) == pytest.approx(min(map(cost, cuts(ordered))))
