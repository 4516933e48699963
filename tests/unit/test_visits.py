"""Images of several shards in one engine that dies."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from mpa_ray.engine.protocol import EngineDied
from mpa_ray.imaging.decode import ImageProblem
from mpa_ray.records import Reason
from mpa_ray.stages.image_work import ImageWork
from mpa_ray.stages.visits import Attempt, Visits


class DeadEngine:
    """Every image in it gets the same error in the same turn of the event loop."""

    async def visit(self, _: ImageWork[Any]) -> list[Any]:
        await asyncio.sleep(0)
        raise EngineDied("the core is gone")


@dataclass
class SlowLog:
    """Takes a while to record a death, as a message to another process does."""

    deaths: list[Mapping[str, Sequence[str]]] = field(default_factory=list)

    async def begin(self, shard: str, generation: int, images: Sequence[str]) -> Attempt:  # noqa: ARG002
        return Attempt(1)

    async def visited(self, shard: str) -> None: ...

    async def next_group(self, _: str) -> Sequence[str]:
        return ()

    async def begin_probe(self) -> None: ...

    async def end_probe(self, is_answered: bool) -> None: ...

    async def died(self, in_flight: Mapping[str, Sequence[str]], _: str) -> None:
        await asyncio.sleep(0.01)
        self.deaths.append(in_flight)


def test_the_death_of_an_engine_is_reported_once_before_any_image_raises() -> None:
    log, ends = SlowLog(), []

    async def end_process(error: str) -> None:
        ends.append(error)

    async def visit_two_shards() -> list[Any]:
        visits = Visits(DeadEngine(), num_slots=8, log=log, die=end_process)
        shards = {shard: [ImageWork(f"{shard}/{n}", "/x", (), b"") for n in range(3)] for shard in ("a", "b")}
        return await asyncio.gather(*(visits.visit(s, works) for s, works in shards.items()), return_exceptions=True)

    results = asyncio.run(visit_two_shards())
    assert all(isinstance(result, ExceptionGroup) for result in results)
    assert ends == ["the core is gone"]
    assert log.deaths == [{"a": ["a/0", "a/1", "a/2"], "b": ["b/0", "b/1", "b/2"]}]


def test_an_engine_that_is_gone_ends_the_visit() -> None:
    async def end_process(error: str) -> None: ...

    visits = Visits(DeadEngine(), num_slots=1, log=SlowLog(), die=end_process)
    with pytest.raises(ExceptionGroup):
        asyncio.run(visits.visit("a", [ImageWork("a/0", "/x", (), b"")]))


@dataclass
class Presence:
    """A stage that notes which images are in the engine together."""

    present: set[str] = field(default_factory=set)
    together: list[set[str]] = field(default_factory=list)

    async def visit(self, work: ImageWork[Any]) -> list[Any]:
        self.present.add(work.image_id)
        self.together.append(set(self.present))
        await asyncio.sleep(0.001)
        self.present.discard(work.image_id)
        return [work.image_id]


@dataclass
class LogWithSuspects(SlowLog):
    """A log in which shard a has suspects; `events` are the steps of its visit."""

    groups: list[tuple[str, ...]] = field(default_factory=lambda: [("a/1", "a/3"), ("a/4",)])
    events: list[str] = field(default_factory=list)

    async def begin(self, shard: str, generation: int, images: Sequence[str]) -> Attempt:
        self.events.append(f"begin {shard} {generation} {len(images)}")
        suspects = frozenset(name for group in self.groups for name in group) if shard == "a" else frozenset[str]()
        return Attempt(2, suspects=suspects, needs_probe=True)

    async def next_group(self, _: str) -> Sequence[str] | None:
        return self.groups.pop(0) if self.groups else ()

    async def begin_probe(self) -> None:
        self.events.append("begin probe")

    async def end_probe(self, is_answered: bool) -> None:
        self.events.append("end probe" if is_answered else "no answer")


def test_suspects_are_visited_in_groups_after_all_others_and_the_engine_answers_the_probe_first() -> None:
    log, stage = LogWithSuspects(), Presence()

    async def probe() -> None:
        assert not stage.together
        log.events.append("probe")

    async def end_process(error: str) -> None:
        pytest.fail(error)

    async def visit_two_shards() -> list[Any]:
        visits = Visits(stage, num_slots=3, log=log, die=end_process, probe=probe)
        shards = {shard: [ImageWork(f"{shard}/{n}", "/x", (), b"") for n in range(6)] for shard in ("a", "b")}
        return await asyncio.gather(*(visits.visit(s, works, generation=7) for s, works in shards.items()))

    rows = asyncio.run(visit_two_shards())
    assert rows == [[f"{shard}/{n}" for n in range(6)] for shard in "ab"]
    assert log.events == ["begin a 7 6", "begin b 7 6", "begin probe", "probe", "end probe"]
    suspects = {"a/1", "a/3", "a/4"}
    assert [images for images in stage.together if images & suspects] == [{"a/1"}, {"a/1", "a/3"}, {"a/4"}]


def test_images_without_a_file_are_no_suspects() -> None:
    log = LogWithSuspects(groups=[])

    async def end_process(error: str) -> None:
        pytest.fail(error)

    unread = ImageProblem(Reason.UNREADABLE, "x")
    works = [ImageWork(name, "/x", (), content) for name, content in (("a", b""), ("b", unread), ("c", None))]
    asyncio.run(Visits(Presence(), num_slots=3, log=log, die=end_process).visit("a", works))
    assert log.events[0] == "begin a 0 1"


def test_a_probe_that_fails_is_repeated_and_is_in_the_engine_no_longer() -> None:
    log, errors = LogWithSuspects(groups=[]), [ConnectionResetError("reset by peer"), TimeoutError("too slow")]

    async def probe() -> None:
        if errors:
            raise errors.pop(0)

    async def end_process(error: str) -> None:
        pytest.fail(error)

    async def visit_shards() -> list[Any]:
        visits = Visits(Presence(), num_slots=3, log=log, die=end_process, probe=probe)
        results = [
            await asyncio.gather(visits.visit(shard, [ImageWork(shard, "/x", (), b"")]), return_exceptions=True)
            for shard in "abcd"
        ]
        return [result for (result,) in results]

    first, second, *rows = asyncio.run(visit_shards())
    assert (str(first), str(second), rows) == ("reset by peer", "too slow", [["c"], ["d"]])
    attempts = ["begin probe", "no answer", "begin probe", "no answer", "begin probe", "end probe"]
    assert [event for event in log.events if "probe" in event or "answer" in event] == attempts


def test_a_probe_that_is_cancelled_is_in_the_engine_no_longer() -> None:
    log = LogWithSuspects(groups=[])

    async def probe() -> None:
        raise asyncio.CancelledError

    async def end_process(error: str) -> None:
        pytest.fail(error)

    async def visit() -> None:
        visits = Visits(Presence(), num_slots=3, log=log, die=end_process, probe=probe)
        with pytest.raises(asyncio.CancelledError):
            await visits.visit("a", [ImageWork("a", "/x", (), b"")])

    asyncio.run(visit())
    assert log.events == ["begin a 0 1", "begin probe", "no answer"]


class LogOfAnotherEngine(LogWithSuspects):
    """Another engine has begun to visit the shard."""

    async def next_group(self, _: str) -> None:
        return None


def test_an_engine_whose_shard_was_given_to_another_one_ends_and_blames_no_image() -> None:
    log, ends = LogOfAnotherEngine(), []

    async def end_process(error: str) -> None:
        ends.append(error)

    stage = Presence()
    visits = Visits(stage, num_slots=3, log=log, die=end_process)
    works = [ImageWork(f"a/{n}", "/x", (), b"") for n in range(6)]
    with pytest.raises(EngineDied, match="shard a was given to another engine"):
        asyncio.run(visits.visit("a", works))
    assert (len(ends), log.deaths) == (1, [{"a": []}])
    assert not {"a/1", "a/3", "a/4"} & set().union(*stage.together)
