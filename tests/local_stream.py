"""Passes without Ray: the operators of a graph, called one after the other in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from mpa_ray.engine.build import build_engine, images_in_flight
from mpa_ray.observability.usage import Load, Usage
from mpa_ray.observability.worker_process import WorkerProcess
from mpa_ray.pipeline.commit import CommitShard
from mpa_ray.pipeline.coordination.coordinator import PassCoordinator
from mpa_ray.pipeline.fetch import FetchShard
from mpa_ray.pipeline.graph import _error
from mpa_ray.pipeline.graph_rows import FetchedShard, ShardFailed, VisitedShard, decode, decode_result, encode
from mpa_ray.pipeline.pass_spec import Pass, ShardDone, ShardLeft
from mpa_ray.stages.visits import Attempt, Visits


class LocalCoordinator:
    """Calls a coordinator as an actor is called, in this thread."""

    def __init__(self, work: Pass[Any], loop: asyncio.AbstractEventLoop) -> None:
        self.coordinator = PassCoordinator(work.limits, work.reading.max_bytes_in_flight, _no_death)
        self._loop = loop

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=lambda *args: self._result(getattr(self.coordinator, name)(*args)))

    def _result(self, result: Any) -> Any:
        return self._loop.run_until_complete(result) if asyncio.iscoroutine(result) else result


class NoDeaths:
    """A log of attempts for engines that do not die."""

    async def begin(self, shard: str, generation: int, images: Sequence[str]) -> Attempt:  # noqa: ARG002
        return Attempt(number=1)

    async def visited(self, shard: str) -> None: ...

    async def next_group(self, _: str) -> Sequence[str]:
        return ()

    async def begin_probe(self) -> None: ...

    async def end_probe(self, is_answered: bool) -> None: ...

    async def died(self, in_flight: Mapping[str, Sequence[str]], error: str) -> None: ...


async def _no_death(process: WorkerProcess, error: str | None) -> str:
    raise AssertionError(f"{process} has not died: {error}")


async def _die(error: str) -> None:
    pytest.fail(error)


def local_stream(
    work: Pass[Any], shards: Iterable[str], committed: Sequence[str] = ()
) -> Generator[ShardDone | ShardLeft, None, None]:
    """Stands in for `mpa_ray.pipeline.graph.stream_pass`, without the duplicates of committed shards."""
    assert work.deduplicated is None or not committed
    loop = asyncio.new_event_loop()
    try:
        coordinator = LocalCoordinator(work, loop)
        engine = build_engine(
            work.model, work.adapters, work.reader.object_store, work.limits.request_timeout_s, Usage(), Load()
        )
        visits = Visits(work.make_stage(engine), images_in_flight(work.model), NoDeaths(), _die)
        for shard in shards:
            coordinator.add_shard.remote(shard)
            fetched = decode(FetchShard(work, coordinator)({"shard": shard}), FetchedShard)
            rows = loop.run_until_complete(visits.visit(shard, fetched.images))
            visited = VisitedShard(replace(fetched, images=[]), len(fetched.images), rows, failure=fetched.failure)
            result = decode_result(CommitShard(work.target)(encode(visited)))
            if isinstance(result, ShardFailed):
                raise _error(work.pool, result.failure)
            coordinator.end_shard.remote(shard)
            yield result
    finally:
        loop.close()


def without_ray(patch: pytest.MonkeyPatch) -> None:
    """Let all passes of this process do without Ray."""
    patch.setattr("mpa_ray.pipeline.fetch.ray.get", lambda result: result)
    patch.setattr("mpa_ray.pipeline.fetch.current_process", lambda role: WorkerProcess.current(role, "here"))
    patch.setattr("mpa_ray.pipeline.cluster.start_ray", lambda: None)
    patch.setattr("mpa_ray.pipeline.graph.stream_pass", local_stream)
