"""A pass that ends early: what one worker finds ends the visits of every engine at once."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from mpa_ray.config import LimitsConfig
from mpa_ray.errors.remedies import Remedy
from mpa_ray.observability.usage import Usage
from mpa_ray.observability.worker_process import WorkerProcess
from mpa_ray.pipeline.coordination.coordinator import PassCoordinator
from mpa_ray.pipeline.coordination.end_of_pass import EndOfPass
from mpa_ray.pipeline.graph import _error
from mpa_ray.pipeline.graph_rows import Failure, FetchedShard, VisitedShard, decode_batch, encode
from mpa_ray.pipeline.model_actor import ModelActor
from mpa_ray.pipeline.pass_spec import ShardLeft
from mpa_ray.stages.image_work import ImageWork
from mpa_ray.stages.visits import GivenUp

LOST = Failure("s3://b/1.png: ExpiredToken.", may_pass=True)


async def no_death(process: WorkerProcess, error: str | None) -> str:
    raise AssertionError(f"{process} has not died: {error}")


class Coordinator:
    """Calls a coordinator as an actor is called."""

    def __init__(self) -> None:
        self.coordinator = PassCoordinator(LimitsConfig(), 2**20, no_death)

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=getattr(self.coordinator, name))


class Visits:
    """Visits that take an hour, except of shards that a test names."""

    def __init__(self, quick: str = "", error: Exception | None = None) -> None:
        self.quick, self.error, self.cancelled = quick, error, list[str]()

    async def visit(self, shard: str, images: list[ImageWork[Any]], generation: int) -> list[str]:
        assert generation == 0
        try:
            await asyncio.sleep(0 if shard == self.quick else 3600)
        except asyncio.CancelledError:
            self.cancelled.append(shard)
            raise
        if self.error is not None:
            raise self.error
        return [image.image_id for image in images]


def actor(visits: Visits, coordinator: Coordinator) -> ModelActor:
    """An actor whose engine has started."""
    model_actor = ModelActor.__new__(ModelActor)
    model_actor.__dict__.update(
        _visits=visits,
        _coordinator=coordinator,
        _giving_up=None,
        _cannot_start="",
        _usage=Usage(),
        _log_fields={},
        _publishing=asyncio.create_task(asyncio.sleep(3600)),
    )
    return model_actor


def batch(fetched: FetchedShard) -> pa.Table:
    return pa.Table.from_pylist([encode(fetched)])


def images(*names: str) -> list[ImageWork[Any]]:
    return [ImageWork(name, name, (), b"1") for name in names]


def test_a_failure_ends_visits_that_would_take_long() -> None:
    async def run() -> tuple[list[VisitedShard], list[str]]:
        visits, coordinator = Visits(quick="0"), Coordinator()
        model_actor = actor(visits, coordinator)
        quick = decode_batch(await model_actor(batch(FetchedShard("0", images("a", "b")))), VisitedShard)
        running = [asyncio.create_task(model_actor(batch(FetchedShard(name, images("c"))))) for name in "12"]
        await asyncio.sleep(0.05)
        await coordinator.coordinator.give_up(LOST)
        ended = await asyncio.gather(*running)
        return [quick, *(decode_batch(row, VisitedShard) for row in ended)], visits.cancelled

    (quick, *ended), cancelled = asyncio.run(run())
    assert (quick.rows, quick.num_images, quick.failure) == (["a", "b"], 2, None)
    assert [visited.failure for visited in ended] == [LOST, LOST]
    assert sorted(cancelled) == ["1", "2"]


@pytest.mark.parametrize(
    "fetched", [FetchedShard("0", failure=LOST), FetchedShard("0", left=ShardLeft("0", 4, 1, "x"))]
)
def test_shards_that_were_not_read_are_not_visited(fetched: FetchedShard) -> None:
    async def run() -> VisitedShard:
        return decode_batch(await actor(Visits(), Coordinator())(batch(fetched)), VisitedShard)

    visited = asyncio.run(run())
    assert (visited.failure, visited.fetched.left, visited.rows) == (fetched.failure, fetched.left, [])


@pytest.mark.parametrize("is_engine_fault", [True, False])
def test_a_shard_on_which_engines_die_too_often_is_a_failure(is_engine_fault: bool) -> None:
    """The fault of an engine may pass: the command ends with exit code 3."""

    async def run() -> VisitedShard:
        model_actor = actor(Visits("0", GivenUp("the engine died 10 times", is_engine_fault)), Coordinator())
        return decode_batch(await model_actor(batch(FetchedShard("0", images("a")))), VisitedShard)

    assert asyncio.run(run()).failure == Failure("the engine died 10 times", may_pass=is_engine_fault)


def test_the_error_names_the_remedy_of_a_shard_that_is_given_up() -> None:
    async def run() -> Failure | None:
        error = GivenUp("17 images killed engines", remedy=Remedy.POISON)
        model_actor = actor(Visits("0", error), Coordinator())
        return decode_batch(await model_actor(batch(FetchedShard("0", images("a")))), VisitedShard).failure

    failure = asyncio.run(run())
    assert failure is not None
    assert str(_error("x", failure)) == f"x: 17 images killed engines. {Remedy.POISON}"
    assert str(_error("x", Failure("the engine died 10 times."))) == f"x: the engine died 10 times. {Remedy.CAUSE}"


def test_the_first_failure_counts() -> None:
    async def run() -> list[Failure | None]:
        end: EndOfPass[Failure] = EndOfPass()
        before = await end.wait(0.01)
        end.give_up(LOST)
        end.give_up(Failure("another"))
        return [before, await end.wait()]

    assert asyncio.run(run()) == [None, LOST]
