"""An epoch as it is laid out: every sample once, in an order and in steps that only samples and seed decide."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpa_ray.config import HoldoutConfig, LevelConfig
from mpa_ray.leveling import epoch_plan as planning
from mpa_ray.leveling.batching import in_seeded_order
from mpa_ray.leveling.epoch_plan import Plan, SampleSources, plan_epoch
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


def planned(folder: Path, parity: Sequence[ParitySample], level: LevelConfig, known: int = 0, **supply: object) -> Plan:
    run = Run.open(str(folder))
    return plan_epoch(run, "students/s/parity", SampleSources(lambda: parity, lambda: verdicts(known), **supply), level)  # type: ignore[arg-type]


def ids(found: Plan) -> list[str]:
    return [row.sample.annotation_id for step in found.steps(0, found.num_steps) for row in step]


@given(st.integers(0, 200), st.integers(0, 3))
def test_every_sample_once_in_an_order_that_does_not_depend_on_theirs(
    tmp_path_factory: pytest.TempPathFactory, count: int, seed: int
) -> None:
    made = samples(count)
    shuffled = random.Random(seed).sample(made, count)
    orders = [
        [s.annotation_id for s in in_seeded_order(given, seed, tmp_path_factory.mktemp("parts"))]
        for given in (made, shuffled)
    ]
    assert orders[0] == orders[1]
    assert sorted(orders[0]) == [s.annotation_id for s in made]


def test_the_seed_orders_the_samples(tmp_path: Path) -> None:
    made = samples(100)
    first, second = (planned(tmp_path / str(seed), made, LevelConfig(seed=seed)) for seed in (0, 1))
    assert ids(first) != ids(second)
    assert Counter(ids(first)) == Counter(ids(second)) == Counter(s.annotation_id for s in made)


@pytest.mark.parametrize("batch_size", [1, 7, 16, 300])
def test_steps_are_read_from_any_shard(batch_size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "_SHARD_ROWS", 32)
    found = planned(tmp_path, samples(150), LevelConfig(batch_size=batch_size))
    steps = list(found.steps(0, found.num_steps))
    assert found.num_steps == len(steps) == -(-150 // batch_size)
    assert [len(step) for step in steps[:-1]] == [batch_size] * (len(steps) - 1)
    assert len(set(ids(found))) == 150
    middle = found.num_steps // 2
    assert list(found.steps(middle, found.num_steps + 5)) == steps[middle:]


def test_longer_samples_are_left_out_and_counted(tmp_path: Path) -> None:
    found = planned(tmp_path, samples(5, 10) + samples(3, 50, "long"), LevelConfig(max_tokens=30))
    assert (found.counts.num_samples, found.counts.num_too_long, found.counts.num_chosen) == (5, 3, 8)


def test_what_is_held_out_or_retained_is_not_trained_on(tmp_path: Path) -> None:
    level = LevelConfig(holdout=HoldoutConfig(share=0.2), replay_share=0.5)
    found = planned(tmp_path, samples(40), level, known=60)
    held_out, retained = ([row.sample.annotation_id for row in rows] for rows in (found.held_out, found.retained))
    trained = ids(found)
    assert (len(held_out), len(retained), len(trained)) == (8, 6, 52)
    assert len({*held_out, *retained, *trained}) == 66
    assert (found.counts.num_mixed_in, found.counts.num_held_out, found.counts.num_retained) == (20, 8, 6)


def test_a_users_own_sets_are_replayed_and_held_out(tmp_path: Path) -> None:
    own, other = samples(50, 0, "own"), samples(30, 0, "other")
    level = LevelConfig(holdout=HoldoutConfig(max_samples=10), replay_share=0.5)
    found = planned(tmp_path, samples(40), level, known=60, replayed=lambda: own, held_out=lambda: other)
    trained = ids(found)
    assert sum(name.startswith("own") for name in trained) == 20
    assert not any(name.startswith("k") for name in trained)
    assert len(trained) == 60
    assert [row.sample.annotation_id[:5] for row in found.held_out] == ["other"] * 10
    # Their prompts were never measured: the longest of D_PI stands for them.
    assert {row.num_tokens for row in found.held_out} == {row.num_tokens for step in found.steps(0, 9) for row in step}


def test_an_epoch_that_was_laid_out_is_not_laid_out_again(tmp_path: Path) -> None:
    first = planned(tmp_path, samples(30), LevelConfig(holdout=HoldoutConfig()), known=20)
    again = planned(tmp_path, [], LevelConfig(holdout=HoldoutConfig()))
    assert (ids(again), again.held_out, again.retained) == (ids(first), first.held_out, first.retained)
