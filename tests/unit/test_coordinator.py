"""Order, bytes in flight, duplicates and deaths of a pass: plain objects, one event loop, no Ray."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpa_ray.config import LimitsConfig
from mpa_ray.corpus.dedup_index import DedupIndex
from mpa_ray.engine.protocol import EngineDied
from mpa_ray.imaging.decode import ImageProblem
from mpa_ray.pipeline.coordinator import (
    Attempt,
    Attempts,
    BytesInFlight,
    Duplicates,
    OrderedTurns,
    ShardQueue,
    Sighting,
    sha256,
)
from mpa_ray.records import Reason
from mpa_ray.stages.image_work import ImageWork
from mpa_ray.stages.visits import GivenUp, Slots, Visits


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 99)), unique_by=lambda claim: claim[1]))
def test_the_earliest_position_is_first_whatever_the_order(claims: list[tuple[str, int]]) -> None:
    seen = DedupIndex()
    first: dict[str, int] = {}
    for name, position in claims:
        (earlier,) = seen.claim([(name.encode(), position, str(position))])
        assert earlier == (str(first[name]) if first.get(name, 100) < position else None)
        first[name] = min(first.get(name, 100), position)


def sightings(*names: str) -> list[Sighting | None]:
    return [Sighting(name, sha256(name[0].encode())) for name in names]


@settings(max_examples=25, deadline=None)
@given(st.permutations(range(4)))
def test_an_image_is_the_duplicate_of_an_earlier_one_only(order: list[int]) -> None:
    shards = [f"{n:06d}" for n in range(4)]
    contents = {"000000": ["a0", "b0", "a1"], "000001": ["b1"], "000002": ["c2", "a2"], "000003": ["c3"]}

    async def claimed() -> dict[str, list[str | None] | None]:
        duplicates = Duplicates(OrderedTurns(shards))
        found = await asyncio.gather(*(duplicates.claim(shards[n], sightings(*contents[shards[n]])) for n in order))
        return dict(zip((shards[n] for n in order), found, strict=True))

    found = asyncio.run(claimed())
    assert found == {"000000": [None, None, "a0"], "000001": ["b0"], "000002": [None, "a0"], "000003": ["c2"]}


def test_what_is_committed_is_known_and_a_shard_may_claim_again() -> None:
    async def claimed() -> list[list[str | None] | None]:
        duplicates = Duplicates(OrderedTurns(["000001"]))
        duplicates.know("000000", sightings("a0"))
        return [await duplicates.claim("000001", sightings("a1", "b1")) for _ in range(2)]

    assert asyncio.run(claimed()) == [["a0", None]] * 2


def test_a_shard_that_never_comes_holds_up_nobody_for_ever() -> None:
    async def claimed() -> list[list[str | None] | None]:
        duplicates = Duplicates(OrderedTurns(["000000", "000001"], patience_s=0.05))
        return [await duplicates.claim("000001", sightings("a1"), wait_s=0.03) for _ in range(2)]

    assert asyncio.run(claimed()) == [None, [None]]


def test_a_shard_that_only_waits_for_room_is_not_overtaken() -> None:
    async def order() -> list[bool]:
        budget = BytesInFlight(OrderedTurns(["000000", "000001", "000002"], patience_s=0.05), 100)
        await budget.acquire("000000", 90)
        got = []
        for _ in range(5):
            waiting = [budget.acquire(shard, size, wait_s=0.02) for shard, size in (("000001", 50), ("000002", 1))]
            got += await asyncio.gather(*waiting)
        return got

    assert asyncio.run(order()) == [False] * 10


def test_bytes_in_flight_stay_below_the_limit() -> None:
    shards = [f"{n:06d}" for n in range(30)]

    async def read(budget: BytesInFlight, shard: str, num_bytes: int) -> None:
        await budget.acquire(shard, num_bytes)
        await asyncio.sleep(0.001)
        await budget.release(shard)

    async def peak() -> int:
        budget = BytesInFlight(OrderedTurns(shards), 100)
        await asyncio.gather(*(read(budget, s, 30 + n % 3) for n, s in enumerate(reversed(shards))))
        return budget.peak

    assert 62 < asyncio.run(peak()) <= 100


def test_a_shard_larger_than_all_room_goes_alone_and_one_that_begins_again_keeps_its_lease() -> None:
    async def order() -> list[str]:
        budget = BytesInFlight(OrderedTurns(["000000", "000001"]), 100)
        done: list[str] = []
        await budget.acquire("000000", 500)
        await budget.acquire("000000", 500)

        async def second() -> None:
            await budget.acquire("000001", 1)
            done.append("second")

        task = asyncio.create_task(second())
        await asyncio.sleep(0.01)
        done.append("first")
        await budget.release("000000")
        await task
        return done

    assert asyncio.run(order()) == ["first", "second"]


class Engine:
    """A stage whose engine some images kill; `alone` tells which images were ever in it by themselves."""

    def __init__(self, poison: set[str]) -> None:
        self.poison = poison
        self.present: set[str] = set()
        self.visited_alone: list[str] = []

    async def visit(self, work: ImageWork[Any]) -> list[str]:
        if isinstance(work.content, ImageProblem):
            return [f"{work.image_id}:{work.content.reason}:{work.attempts}"]
        self.present.add(work.image_id)
        await asyncio.sleep(0)
        if self.present == {work.image_id}:
            self.visited_alone.append(work.image_id)
        if work.image_id in self.poison:
            raise EngineDied(f"cannot bear {work.image_id}")
        await asyncio.sleep(0.001)
        self.present.discard(work.image_id)
        return [work.image_id]


class Log:
    """The attempts' record without a wire; `tells` is whether a dying engine can still speak."""

    def __init__(self, attempts: Attempts, tells: bool) -> None:
        self.attempts, self.tells = attempts, tells

    async def begin(self, shard: str) -> Attempt:
        return self.attempts.begin(shard)

    async def alone(self, shard: str, image_id: str | None) -> None:
        self.attempts.alone(shard, image_id)

    async def died(self, in_flight: Mapping[str, Sequence[str]], error: str) -> None:
        if self.tells:
            self.attempts.died(in_flight, error)


class Killed(Exception):
    """The process is gone."""


async def _killed(error: str) -> None:
    raise Killed(error)


def works(shard: str, count: int) -> list[ImageWork[Any]]:
    return [ImageWork(f"{shard}/{n}", "", (), b"") for n in range(count)]


def visited(poison: set[str], shards: dict[str, int], tells: bool = True, **limits: int) -> tuple[dict[str, Any], int]:
    """The rows of every shard, through as many engines as it takes, and how many died."""
    attempts = Attempts(LimitsConfig.model_validate(limits))

    async def one_life(left: dict[str, int]) -> dict[str, Any]:
        visits = Visits(Engine(poison), 4, Log(attempts, tells), _killed)
        found = await asyncio.gather(*(visits.visit(s, works(s, n)) for s, n in left.items()), return_exceptions=True)
        if any(isinstance(rows, GivenUp) for rows in found):
            raise next(rows for rows in found if isinstance(rows, GivenUp))
        # What a dying process had not handed over is lost with it.
        return dict(zip(left, found, strict=True)) if not any(isinstance(r, BaseException) for r in found) else {}

    rows: dict[str, Any] = {}
    num_deaths = 0
    while left := {s: n for s, n in shards.items() if s not in rows}:
        done = asyncio.run(one_life(left))
        rows |= done
        num_deaths += not done
    return rows, num_deaths


@pytest.mark.parametrize("tells", [True, False])
def test_a_poison_image_is_quarantined_and_nobody_else(tells: bool) -> None:
    rows, num_deaths = visited({"a/3"}, {"a": 9, "b": 9}, tells, max_image_deaths=2)
    assert rows["a"] == [f"a/{n}" if n != 3 else f"a/3:{Reason.KILLS_ENGINE}:3" for n in range(9)]
    assert rows["b"] == [f"b/{n}" for n in range(9)]
    # Once among others, twice where nobody tells, and twice alone.
    assert num_deaths == (3 if tells else 4)


def test_several_poison_images_and_a_harmless_shard() -> None:
    rows, _ = visited({"a/0", "a/7", "b/2"}, {"a": 9, "b": 5, "c": 4}, max_image_deaths=1)
    assert sum(Reason.KILLS_ENGINE in row for shard in rows.values() for row in shard) == 3
    assert rows["c"] == [f"c/{n}" for n in range(4)]


def test_an_engine_that_always_dies_is_given_up() -> None:
    everything = {f"a/{n}" for n in range(9)}
    with pytest.raises(GivenUp, match=r"the engine died 5 times on shard a, the last time with: cannot bear a/"):
        visited(everything, {"a": 9}, max_engine_deaths=5)


def test_all_slots_are_taken_by_one_at_a_time() -> None:
    async def most_together() -> tuple[int, int]:
        slots, inside, peak_beside = Slots(3), [0], [0, 0]

        async def alone() -> None:
            async with slots.all():
                peak_beside[0] = max(peak_beside[0], inside[0])
                await asyncio.sleep(0.001)

        async def among() -> None:
            async with slots.one():
                inside[0] += 1
                peak_beside[1] = max(peak_beside[1], inside[0])
                await asyncio.sleep(0.001)
                inside[0] -= 1

        await asyncio.gather(*(alone() if n % 4 == 0 else among() for n in range(24)))
        return peak_beside[0], peak_beside[1]

    assert asyncio.run(most_together()) == (0, 3)


def test_shards_are_told_as_they_become_known() -> None:
    async def told() -> list[list[str] | None]:
        queue = ShardQueue()
        found: list[list[str] | None] = [await queue.behind(0, wait_s=0.01)]
        waiting = asyncio.ensure_future(queue.behind(0))
        await asyncio.sleep(0)
        await queue.add("000000")
        found.append(await waiting)
        await queue.add("000001")
        await queue.add("000002")
        found += [await queue.behind(1), await queue.behind(0)]
        waiting = asyncio.ensure_future(queue.behind(3))
        await asyncio.sleep(0)
        await queue.complete()
        return [*found, await waiting, await queue.behind(2)]

    every = ["000000", "000001", "000002"]
    assert asyncio.run(told()) == [[], every[:1], every[1:], every, None, every[2:]]
