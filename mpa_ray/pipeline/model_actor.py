"""The operator of a pass's graph in which the engines run."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pyarrow as pa
import ray

from mpa_ray.config import ModelConfig
from mpa_ray.engine.build import build_engine, images_in_flight
from mpa_ray.engine.probe import answer_probe
from mpa_ray.engine.process_group import end_group_with_this_process
from mpa_ray.engine.protocol import EngineDied
from mpa_ray.errors import ConfigError
from mpa_ray.observability.last_words import in_words
from mpa_ray.observability.log_context import log_context
from mpa_ray.observability.usage import Load, Usage
from mpa_ray.observability.worker_process import WorkerProcess
from mpa_ray.pipeline.death_recorder import current_process
from mpa_ray.pipeline.graph_rows import Failure, FetchedShard, VisitedShard, decode_batch, encode_batch
from mpa_ray.pipeline.pass_spec import Pass
from mpa_ray.pipeline.telemetry import Gauges
from mpa_ray.run.versions import engine_versions
from mpa_ray.stages.image_work import ImageWork
from mpa_ray.stages.visits import Attempt, GivenUp, Visits

logger = logging.getLogger(__name__)


class ModelActor:
    """One replica of a model with its engine. It works on several shards at once, so that the engine is never idle."""

    def __init__(self, work: Pass[Any], model: ModelConfig, coordinator: Any) -> None:
        self._watcher = end_group_with_this_process()
        self._usage, load = Usage(), Load()
        self._gauges = Gauges(work.pool, load)
        self._publishing: asyncio.Task[None] | None = None
        self._giving_up: asyncio.Task[Failure] | None = None
        self._coordinator = coordinator
        self._cannot_start = ""
        self._log_fields, started = work.log_fields, time.monotonic()
        process, actor_id = current_process(f"engine of {work.models_label}"), ray.get_runtime_context().get_actor_id()
        log, name = _RemoteAttemptLog(coordinator, process), work.model.model
        with log_context(**self._log_fields):
            if cause := ray.get(coordinator.begin_start.remote(actor_id, process)):
                self._cannot_start = f"the engine of {name} cannot start: {cause}"
                return
            try:
                engine = build_engine(
                    model, work.adapters, work.reader.object_store, work.limits.request_timeout_s, self._usage, load
                )
            except Exception as error:
                # Not raised, because another actor would fail in the same way, and because Ray would report the error
                # in a hundred lines.
                logger.exception("the engine of %s cannot start", name)
                words = str(error) if isinstance(error, EngineDied | ConfigError) else in_words(error)
                cause = ray.get(coordinator.record_failed_start.remote(process, words))
                self._cannot_start = f"the engine of {name} cannot start: {cause}"
                return
            finally:
                coordinator.end_start.remote(actor_id)
            wall_s = round(time.monotonic() - started, 3)
            logger.info("the engine of %s has started", name, extra={"wall_s": wall_s})
        num_slots, probe = images_in_flight(model), partial(answer_probe, engine)
        self._visits = Visits(work.make_stage(engine), num_slots, log, _end_process, self._usage, load, probe)

    async def __call__(self, batch: pa.Table) -> pa.Table:
        self._publishing = self._publishing or asyncio.create_task(self._gauges.keep_publishing())
        fetched = decode_batch(batch, FetchedShard)
        images, fetched = fetched.images, replace(fetched, images=[])
        rows: list[Any] = []
        failure = Failure(self._cannot_start) if self._cannot_start else fetched.failure
        started = time.monotonic()
        if failure is None and fetched.left is None:
            try:
                with log_context(**self._log_fields, shard=fetched.shard):
                    rows, failure = await self._visit(fetched.shard, images, fetched.plan.generation)
            except GivenUp as error:
                failure = Failure(str(error), may_pass=error.is_engine_fault, remedy=error.remedy)
        usage = self._usage.take()
        usage += fetched.usage
        visit_s = time.monotonic() - started
        return encode_batch(VisitedShard(fetched, len(images), rows, visit_s, usage, failure, engine_versions()))

    async def _visit(
        self, shard: str, images: Sequence[ImageWork[Any]], generation: int
    ) -> tuple[list[Any], Failure | None]:
        """The rows of the images. If a failure ends the pass in the meantime, this returns the failure without rows."""
        self._giving_up = self._giving_up or asyncio.create_task(self._wait_for_failure())
        visiting = asyncio.create_task(self._visits.visit(shard, images, generation))
        await asyncio.wait((visiting, self._giving_up), return_when=asyncio.FIRST_COMPLETED)
        if visiting.done():
            return visiting.result(), None
        visiting.cancel()
        return [], self._giving_up.result()

    async def _wait_for_failure(self) -> Failure:
        failure: Failure | None = None
        while failure is None:
            failure = await self._coordinator.wait_for_failure.remote()
        return failure


@dataclass(frozen=True)
class _RemoteAttemptLog:
    """Sends attempts to the coordinator; implements `stages.visits.AttemptLog`."""

    coordinator: Any
    process: WorkerProcess

    async def begin(self, shard: str, generation: int, images: Sequence[str]) -> Attempt:
        attempt: Attempt = await self.coordinator.begin_attempt.remote(shard, self.process, images, generation)
        return attempt

    async def visited(self, shard: str) -> None:
        # Not awaited, because nothing depends on the answer.
        self.coordinator.report_visited.remote(shard, self.process)

    async def next_group(self, shard: str) -> Sequence[str] | None:
        group: Sequence[str] | None = await self.coordinator.next_group.remote(shard, self.process)
        return group

    async def begin_probe(self) -> None:
        await self.coordinator.begin_probe.remote(self.process)

    async def end_probe(self, is_answered: bool) -> None:
        await self.coordinator.end_probe.remote(self.process, is_answered)

    async def died(self, in_flight: Mapping[str, Sequence[str]], error: str) -> None:
        await self.coordinator.report_death.remote(self.process, in_flight, error)


async def _end_process(error: str) -> None:
    """End the actor with its dead engine: Ray restarts the actor and sends its shards again."""
    logger.error("the engine died: %s", error)
    logging.shutdown()
    os._exit(1)
