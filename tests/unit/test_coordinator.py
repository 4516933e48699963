"""The shared state of a pass: turns, bytes in flight, duplicates and attempts, on one event loop and without Ray."""

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
from mpa_ray.pipeline.coordination.attempts import Attempts
from mpa_ray.pipeline.coordination.bytes_in_flight import BytesInFlight
from mpa_ray.pipeline.coordination.duplicates import Duplicates, Sighting
from mpa_ray.pipeline.coordination.shard_queue import ShardQueue
from mpa_ray.pipeline.coordination.turns import OrderedTurns
from mpa_ray.records import Reason
from mpa_ray.stages.image_work import ImageWork
from mpa_ray.stages.visits import Attempt, GivenUp, Slots, Visits


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 99)), unique_by=lambda claim: claim[1]))
def test_an_original_is_the_earliest_of_its_copies_in_any_order_of_claims(claims: list[tuple[str, int]]) -> None:
    index = DedupIndex()
    first: dict[str, int] = {}
    for name, position in claims:
        (original,) = index.claim([(name.encode(), position, str(position))])
        assert original == (str(first[name]) if first.get(name, 100) < position else None)
        first[name] = min(first.get(name, 100), position)


def sightings(*names: str) -> list[Sighting | None]:
    """Images whose bytes are the first letters of their names."""
    return [Sighting.of(name, name[0].encode()) for name in names]


@settings(max_examples=25, deadline=None)
@given(st.permutations(range(4)))
def test_only_a_later_image_is_a_duplicate(order: list[int]) -> None:
    shards = [f"{n:06d}" for n in range(4)]
    contents = {"000000": ["a0", "b0", "a1"], "000001": ["b1"], "000002": ["c2", "a2"], "000003": ["c3"]}

    async def claim_all() -> dict[str, list[str | None] | None]:
        duplicates = Duplicates(OrderedTurns(shards))
        claims = (duplicates.claim(shards[n], sightings(*contents[shards[n]])) for n in order)
        return dict(zip((shards[n] for n in order), await asyncio.gather(*claims), strict=True))

    assert asyncio.run(claim_all()) == {
        "000000": [None, None, "a0"],
        "000001": ["b0"],
        "000002": [None, "a0"],
        "000003": ["c2"],
    }


def test_duplicates_of_committed_images_are_found_and_a_retried_shard_gets_the_same_answer() -> None:
    async def claim_twice() -> list[list[str | None] | None]:
        duplicates = Duplicates(OrderedTurns(["000001"]))
        duplicates.add_committed("000000", sightings("a0"))
        return [await duplicates.claim("000001", sightings("a1", "b1")) for _ in range(2)]

    assert asyncio.run(claim_twice()) == [["a0", None]] * 2


def test_a_shard_whose_worker_is_silent_is_passed_after_a_while() -> None:
    async def claim_twice() -> list[list[str | None] | None]:
        duplicates = Duplicates(OrderedTurns(["000000", "000001"], max_silence_s=0.05))
        return [await duplicates.claim("000001", sightings("a1"), wait_s=0.03) for _ in range(2)]

    assert asyncio.run(claim_twice()) == [None, [None]]


def test_a_shard_that_waits_for_room_is_not_passed() -> None:
    async def granted() -> list[bool]:
        budget = BytesInFlight(OrderedTurns(["000000", "000001", "000002"], max_silence_s=0.5), 100)
        await budget.acquire("000000", 90)
        results = []
        for _ in range(5):
            waiting = [budget.acquire(shard, size, wait_s=0.2) for shard, size in (("000001", 50), ("000002", 1))]
            results += await asyncio.gather(*waiting)
        return results

    assert asyncio.run(granted()) == [False] * 10


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


def test_a_shard_above_the_limit_goes_alone_and_a_retried_shard_keeps_its_lease() -> None:
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
    """A stage whose engine some images kill."""

    def __init__(self, poison: set[str]) -> None:
        self.poison = poison

    async def visit(self, work: ImageWork[Any]) -> list[str]:
        if isinstance(work.content, ImageProblem):
            return [f"{work.image_id}:{work.content.reason}:{work.attempts}"]
        await asyncio.sleep(0)
        if work.image_id in self.poison:
            raise EngineDied(f"killed by {work.image_id}")
        await asyncio.sleep(0.001)
        return [work.image_id]


class LocalAttemptLog:
    """Calls `Attempts` without Ray; `reports` is whether a dying engine can still report."""

    def __init__(self, attempts: Attempts, reports: bool) -> None:
        self.attempts, self.reports = attempts, reports

    async def begin(self, shard: str, generation: int, images: Sequence[str]) -> Attempt:  # noqa: ARG002
        previous = self.attempts.unfinished_engine(shard)
        if previous not in (None, self):
            self.attempts.bury(previous, None, "killed silently", was_taken_away=False)
        return self.attempts.begin(shard, self, images)

    async def visited(self, shard: str) -> None:
        self.attempts.report_visited(shard, self)

    async def next_group(self, shard: str) -> Sequence[str] | None:
        return self.attempts.next_group(shard, self)

    async def begin_probe(self) -> None:
        self.attempts.begin_probe(self)

    async def end_probe(self, is_answered: bool) -> None:
        self.attempts.end_probe(self, is_answered)

    async def died(self, in_flight: Mapping[str, Sequence[str]], error: str) -> None:
        if self.reports:
            self.attempts.bury(self, in_flight, error, was_taken_away=False)


class Killed(Exception):
    """The engine's process has ended."""


async def _killed(error: str) -> None:
    raise Killed(error)


def works(shard: str, count: int) -> list[ImageWork[Any]]:
    return [ImageWork(f"{shard}/{n}", "", (), b"") for n in range(count)]


class WorkingProbe:
    async def __call__(self) -> None:
        await asyncio.sleep(0)


class FailingProbe:
    async def __call__(self) -> None:
        raise EngineDied("the driver is gone")


def visit_all(
    poison: set[str],
    shards: dict[str, int],
    reports: bool = True,
    probe: WorkingProbe | FailingProbe | None = None,
    **limits: int,
) -> tuple[dict[str, Any], int]:
    """Visit all shards with as many engines as it takes; returns their rows, and how many engines died."""
    attempts = Attempts(LimitsConfig.model_validate(limits))

    async def visit_with_one_engine(left: dict[str, int]) -> dict[str, Any]:
        log = LocalAttemptLog(attempts, reports)
        visits = Visits(Engine(poison), 4, log, _killed, probe=probe or WorkingProbe())
        visiting = (visits.visit(shard, works(shard, count)) for shard, count in left.items())
        results = await asyncio.gather(*visiting, return_exceptions=True)
        if any(isinstance(rows, GivenUp) for rows in results):
            raise next(rows for rows in results if isinstance(rows, GivenUp))
        # The rows of a process that ends are lost with it.
        return dict(zip(left, results, strict=True)) if not any(isinstance(r, BaseException) for r in results) else {}

    rows: dict[str, Any] = {}
    num_deaths = 0
    while left := {s: n for s, n in shards.items() if s not in rows}:
        done = asyncio.run(visit_with_one_engine(left))
        rows |= done
        num_deaths += not done
    return rows, num_deaths


@pytest.mark.parametrize("reports", [True, False])
def test_only_the_image_that_kills_engines_is_quarantined(reports: bool) -> None:
    rows, num_deaths = visit_all({"a/3"}, {"a": 9, "b": 9}, reports, max_image_deaths=2)
    assert rows["a"] == [f"a/{n}" if n != 3 else f"a/3:{Reason.KILLS_ENGINE}:3" for n in range(9)]
    assert rows["b"] == [f"b/{n}" for n in range(9)]
    # Among others, in a group of two images if no death is reported, and twice alone.
    assert num_deaths == (3 if reports else 4)


@pytest.mark.parametrize("reports", [True, False])
def test_several_images_that_kill_engines_leave_the_other_shard_whole(reports: bool) -> None:
    rows, _ = visit_all({"a/0", "a/7", "b/2"}, {"a": 9, "b": 5, "c": 4}, reports, max_image_deaths=1)
    killed = [row.split(":")[0] for shard in rows.values() for row in shard if Reason.KILLS_ENGINE in row]
    assert killed == ["a/0", "a/7", "b/2"]
    assert rows["c"] == [f"c/{n}" for n in range(4)]


def test_a_shard_on_which_engines_always_die_is_given_up() -> None:
    everything = {f"a/{n}" for n in range(9)}
    with pytest.raises(
        GivenUp,
        match=r"3 images of shard a killed engines, more than limits.max_poison_images = 2; the latest cause: "
        r"killed by a/",
    ):
        visit_all(everything, {"a": 9}, max_poison_images=2)


def test_a_death_blames_no_image_if_the_next_engines_cannot_answer_the_probe() -> None:
    with pytest.raises(
        GivenUp, match=r"die when they process a built-in test picture, so .* not the cause: the driver is"
    ) as end:
        visit_all({"a/3"}, {"a": 9, "b": 9}, probe=FailingProbe())
    assert end.value.is_engine_fault


def test_an_image_that_takes_all_slots_is_alone() -> None:
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


def test_readers_of_the_queue_get_shards_as_they_become_known() -> None:
    async def read() -> list[list[str] | None]:
        queue = ShardQueue()
        answers: list[list[str] | None] = [await queue.read_from(0, wait_s=0.01)]
        waiting = asyncio.ensure_future(queue.read_from(0))
        await asyncio.sleep(0)
        await queue.add("000000")
        answers.append(await waiting)
        await queue.add("000001")
        await queue.add("000002")
        answers += [await queue.read_from(1), await queue.read_from(0)]
        waiting = asyncio.ensure_future(queue.read_from(3))
        await asyncio.sleep(0)
        await queue.close()
        return [*answers, await waiting, await queue.read_from(2)]

    shards = ["000000", "000001", "000002"]
    assert asyncio.run(read()) == [[], shards[:1], shards[1:], shards, None, shards[2:]]
