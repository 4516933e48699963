"""The plan of an epoch: every sample once, in an order and in steps that depend on samples and seed alone."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpa_ray.config import HoldoutConfig, LevelConfig
from mpa_ray.leveling.arms import SampleSources
from mpa_ray.leveling.epoch_plan import MAX_SHARD_ROWS, EpochPlan, plan_epoch
from mpa_ray.leveling.shuffle import in_seeded_order
from mpa_ray.records import ParitySample, Verdict
from mpa_ray.run.run import Run


def samples(count: int, tokens: int = 20, prefix: str = "") -> list[ParitySample]:
    return [ParitySample(f"{prefix}{n:04d}#0", f"{n}", f"/{n}", "?", "a", "b", None, tokens) for n in range(count)]


def verdicts(count: int) -> list[Verdict]:
    return [
        Verdict(
            f"k{n}#0", f"{n}", f"/{n}", "dropped", "student_correct", question="?", answer="a", num_prompt_tokens=20
        )
        for n in range(count)
    ]


def planned(
    folder: Path,
    parity: Sequence[ParitySample],
    level: LevelConfig,
    known: int = 0,
    max_shard_rows: int = MAX_SHARD_ROWS,
    **others: object,
) -> EpochPlan:
    sources = SampleSources(lambda: parity, lambda: verdicts(known), **others)  # type: ignore[arg-type]
    run = Run.open(str(folder))
    return plan_epoch(run, "students/s/parity", sources, level, max_shard_rows=max_shard_rows)


def ids(plan: EpochPlan) -> list[str]:
    return [row.sample.annotation_id for step in plan.steps(0, plan.num_steps) for row in step]


@given(st.integers(0, 200), st.integers(0, 3))
def test_the_order_holds_every_sample_once_and_does_not_depend_on_theirs(
    tmp_path_factory: pytest.TempPathFactory, count: int, seed: int
) -> None:
    ordered = samples(count)
    shuffled = random.Random(seed).sample(ordered, count)
    orders = [
        [s.annotation_id for s in in_seeded_order(rows, seed, tmp_path_factory.mktemp("buckets"))]
        for rows in (ordered, shuffled)
    ]
    assert orders[0] == orders[1]
    assert sorted(orders[0]) == [s.annotation_id for s in ordered]


def test_the_seed_orders_the_samples(tmp_path: Path) -> None:
    parity = samples(100)
    first, second = (planned(tmp_path / str(seed), parity, LevelConfig(seed=seed)) for seed in (0, 1))
    assert ids(first) != ids(second)
    assert Counter(ids(first)) == Counter(ids(second)) == Counter(s.annotation_id for s in parity)


@pytest.mark.parametrize("batch_size", [1, 7, 16, 300])
def test_steps_are_read_from_any_shard(batch_size: int, tmp_path: Path) -> None:
    plan = planned(tmp_path, samples(150), LevelConfig(batch_size=batch_size), max_shard_rows=32)
    steps = list(plan.steps(0, plan.num_steps))
    assert plan.num_steps == len(steps) == -(-150 // batch_size)
    assert [len(step) for step in steps[:-1]] == [batch_size] * (len(steps) - 1)
    assert len(set(ids(plan))) == 150
    middle = plan.num_steps // 2
    assert list(plan.steps(middle, plan.num_steps + 5)) == steps[middle:]


def test_longer_samples_are_left_out_and_counted(tmp_path: Path) -> None:
    plan = planned(tmp_path, samples(5, 10) + samples(3, 50, "long"), LevelConfig(max_tokens=30))
    assert (plan.counts.num_samples, plan.counts.num_too_long, plan.counts.num_chosen) == (5, 3, 8)


def test_samples_held_out_or_retained_are_not_trained_on(tmp_path: Path) -> None:
    level = LevelConfig(holdout=HoldoutConfig(share=0.2), replay_share=0.5)
    plan = planned(tmp_path, samples(40), level, known=60)
    held_out, retained = ([row.sample.annotation_id for row in rows] for rows in (plan.held_out, plan.retained))
    trained = ids(plan)
    assert (len(held_out), len(retained), len(trained)) == (8, 6, 52)
    assert len({*held_out, *retained, *trained}) == 66
    assert (plan.counts.num_mixed_in, plan.counts.num_held_out, plan.counts.num_retained) == (20, 8, 6)


def test_a_users_own_sets_are_replayed_and_held_out(tmp_path: Path) -> None:
    own, other = samples(50, 0, "own"), samples(30, 0, "other")
    level = LevelConfig(holdout=HoldoutConfig(max_samples=10), replay_share=0.5)
    plan = planned(tmp_path, samples(40), level, known=60, replayed=lambda: own, held_out=lambda: other)
    trained = ids(plan)
    assert sum(name.startswith("own") for name in trained) == 20
    assert not any(name.startswith("k") for name in trained)
    assert len(trained) == 60
    assert [row.sample.annotation_id[:5] for row in plan.held_out] == ["other"] * 10
    # Their prompts were never measured, so they count as the longest of D_PI.
    assert {row.num_tokens for row in plan.held_out} == {row.num_tokens for step in plan.steps(0, 9) for row in step}


def test_a_stored_plan_is_read_and_not_made_again(tmp_path: Path) -> None:
    first = planned(tmp_path, samples(30), LevelConfig(holdout=HoldoutConfig()), known=20)
    again = planned(tmp_path, [], LevelConfig(holdout=HoldoutConfig()))
    assert (ids(again), again.held_out, again.retained) == (ids(first), first.held_out, first.retained)
