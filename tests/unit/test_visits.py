"""Images of several shards in one engine that dies."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from mpa_ray.engine.protocol import EngineDied
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

    async def begin(self, _: str) -> Attempt:
        return Attempt(1)

    async def visited(self, shard: str) -> None: ...

    async def alone(self, shard: str, image_id: str | None) -> None: ...

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
