"""Sends shards through a model on a Ray cluster, as one streaming graph: fetch -> model pool -> commit.

A row of the graph is one whole shard, so Ray never splits or merges a unit of work, and a retry repeats exactly one
shard.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from functools import partial
from typing import Any

import ray
from ray.data import ActorPoolStrategy, Dataset, TaskPoolStrategy
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mpa_ray.config import resolve_path
from mpa_ray.engine.build import images_in_flight
from mpa_ray.errors import AccessLost, ConfigError, RunError, Unfinished
from mpa_ray.errors.remedies import what_continues
from mpa_ray.observability.last_words import in_words
from mpa_ray.observability.progress import say
from mpa_ray.pipeline.cluster import check_resources, configure_ray_data
from mpa_ray.pipeline.commit import CommitShard
from mpa_ray.pipeline.coordination.coordinator import PassCoordinator
from mpa_ray.pipeline.coordination.duplicates import Sighting
from mpa_ray.pipeline.death_recorder import DeathRecorder, was_taken_away
from mpa_ray.pipeline.death_watch import Deaths, DeathWatch
from mpa_ray.pipeline.engine_digest import engine_digest
from mpa_ray.pipeline.fetch import FetchShard, NameShards
from mpa_ray.pipeline.graph_rows import EncodedShard, Failure, ShardFailed, decode_result
from mpa_ray.pipeline.machine import AUXILIARY_CPUS, Need
from mpa_ray.pipeline.model_actor import ModelActor
from mpa_ray.pipeline.pass_spec import Pass, ShardDone, ShardLeft
from mpa_ray.pipeline.settings_watch import SettingsWatch
from mpa_ray.pipeline.telemetry import Counters
from mpa_ray.records import ImageDigest, Reason
from mpa_ray.run.prefetch import prefetch

logger = logging.getLogger(__name__)

_NUM_IMAGES_NAMED = 5
_SETTLE_S = 90.0
"""How long a pass waits at its end until all deaths are recorded."""


def stream_pass(
    work: Pass[Any], shards: Iterable[str], committed: Sequence[str] = ()
) -> Generator[ShardDone | ShardLeft, None, None]:
    """Send shards through the model and commit them.

    Yields each shard once it is committed, or once it is left for the next run of the command, in any order.

    Closing the generator ends the engines.

    Args:
        work: The pass.
        shards: The shards to do. Getting the next shard may take time; engines start in the meantime. If the iterable
            raises an error, the shards before the error are done first, and then this generator raises the error.
        committed: The shards that are already done. The pass also finds duplicates of their images.

    Raises:
        ConfigError: this machine is too small for an engine, or the setup of a node is wrong, such as its credentials.
        RunError: engines died too often on one shard, or files of the run cannot be read or written.
    """
    configure_ray_data()
    model = work.model
    check_resources(Need.of_engine(model, work.branch))
    coordinator = _start_coordinator(work, committed)
    deaths = DeathWatch(work.pool, partial(_deaths, coordinator))
    with _ShardFeed(coordinator, shards), SettingsWatch(work.target, coordinator), deaths:
        graph = _graph(work, coordinator)
        with _deaths_recorded(coordinator), closing(_finished_shards(work, graph, coordinator)) as finished:
            yield from finished
            _warn_of_quarantine(work, ray.get(coordinator.quarantined.remote()))


def _graph(work: Pass[Any], coordinator: Any) -> Dataset:
    # Resolved here, because actors have a different working directory.
    model = work.model.model_copy(update={"model": resolve_path(work.model.model)})
    # While the last images of a shard are in the engine, images of the next shards fill the free slots.
    shards_in_flight = max(2, 1 + math.ceil(images_in_flight(model) / 64))
    graph = (
        ray.data.from_items([{"pass": work.pool}])
        .flat_map(NameShards(coordinator), num_cpus=0)
        .map(
            FetchShard(work, coordinator),
            compute=TaskPoolStrategy(work.reading.num_shards),
            num_cpus=AUXILIARY_CPUS,
        )
        .map_batches(
            ModelActor,
            fn_constructor_args=(work, model, coordinator),
            batch_size=1,
            batch_format="pyarrow",
            zero_copy_batch=True,
            compute=ActorPoolStrategy(
                min_size=model.num_replicas,
                max_size=model.most_replicas,
                max_tasks_in_flight_per_actor=shards_in_flight + 1,
                max_concurrent_calls_per_actor=shards_in_flight,
            ),
            num_cpus=model.cpus_per_replica,
            num_gpus=model.gpus_per_replica,
            accelerator_type=model.accelerator_type,
        )
        .map(CommitShard(work.target), num_cpus=AUXILIARY_CPUS)
    )
    # A block holds one row, so that each row leaves an operator as soon as it is ready.
    graph.context.target_max_block_size = 1
    return graph


def _finished_shards(work: Pass[Any], graph: Dataset, coordinator: Any) -> Generator[ShardDone | ShardLeft, None, None]:
    counters = Counters(work.pool)
    with _rows_of(work, graph) as rows:
        for row in rows:
            result = decode_result(row)
            if isinstance(result, ShardFailed):
                raise _error(work.pool, result.failure)
            coordinator.end_shard.remote(result.shard)
            if isinstance(result, ShardLeft):
                yield result
                continue
            # Counted in the driver, so that a shard counts once, no matter how often it was begun.
            counters.count(result.num_images, result.outcomes, result.usage)
            fields: dict[str, object] = {f"failed_{reason}": number for reason, number in result.failed.items()}
            fields |= {"shard": result.shard, "num_images": result.num_images, "visit_s": round(result.visit_s, 3)}
            logger.info("shard committed", extra=fields)
            yield result


def _warn_of_quarantine(work: Pass[Any], images: Sequence[str]) -> None:
    if not images:
        return
    named = ", ".join(images[:_NUM_IMAGES_NAMED]) + (", ..." if len(images) > _NUM_IMAGES_NAMED else "")
    number = "1 image" if len(images) == 1 else f"{len(images)} images"
    say(f"WARNING: {work.pool}: {number} killed engines and failed with reason {Reason.KILLS_ENGINE} ({named}).")


def _error(pool: str, failure: Failure) -> ConfigError | RunError:
    """The error that ends a pass."""
    if isinstance(failure.ends_command, ConfigError):
        return failure.ends_command
    problem = f"{pool}: {failure.in_words()}"
    if failure.ends_command is not None:
        return AccessLost(problem)
    return Unfinished(problem) if failure.may_pass else RunError(problem)


@contextmanager
def _deaths_recorded(coordinator: Any) -> Iterator[None]:
    """Wait at the end until all deaths are recorded, since the coordinator ends with the pass.

    After Ctrl-C, there is no wait.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise
    except BaseException:
        _settle(coordinator)
        raise
    _settle(coordinator)


def _settle(coordinator: Any) -> None:
    with suppress(RayError):
        ray.get(coordinator.settle.remote(), timeout=_SETTLE_S)


def _deaths(coordinator: Any) -> Deaths | None:
    """The deaths so far; None if the coordinator does not answer. Other code reports such an error."""
    try:
        return Deaths(*ray.get(coordinator.latest_death.remote(), timeout=_SETTLE_S))
    except RayError:
        return None


@contextmanager
def _rows_of(work: Pass[Any], graph: Dataset) -> Iterator[Iterator[EncodedShard]]:
    """Run the graph, and end its actors when the `with` block ends.

    Ray Data only ends the actors when the iterator is deleted, and a referenced error would keep the iterator alive.
    """
    rows: Generator[EncodedShard, None, None] = iter(graph.iter_rows())
    try:
        yield rows
    except RayError as error:
        with suppress(Exception):
            rows.close()
        remedy = what_continues(error)
        problem = f"{work.pool}: {in_words(error).rstrip('.')}. {remedy}".rstrip()
        raise (Unfinished(problem) if remedy.may_pass else RunError(problem)) from error
    except BaseException:
        # Ray itself may have ended, in which case closing fails. That error must not hide the first one.
        with suppress(Exception):
            rows.close()
        raise


def _start_coordinator(work: Pass[Any], committed: Sequence[str]) -> Any:
    """Start the coordinator on the driver's node, because both must live as long as the pass."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    coordinator = ray.remote(num_cpus=0, scheduling_strategy=here)(PassCoordinator).remote(
        work.limits,
        work.reading.max_bytes_in_flight,
        DeathRecorder(work.run_dir, work.reader.object_store, work.key),
        was_taken_away,
        work.target,
        engine_digest(work),
    )
    if (annotations := work.deduplicated) is not None:
        rows_of_shards = prefetch(lambda shard: annotations.columns(shard, ImageDigest), committed)
        ray.get(
            [
                coordinator.add_committed_images.remote({shard: [_sighting(row) for row in rows]})
                for shard, rows in zip(committed, rows_of_shards, strict=True)
            ]
        )
    return coordinator


def _sighting(row: ImageDigest) -> Sighting | None:
    return Sighting(row.image_id, row.content_sha256) if row.content_sha256 else None


class _ShardFeed:
    """Passes shards to the coordinator as they become known, in a thread of the driver."""

    def __init__(self, coordinator: Any, shards: Iterable[str]) -> None:
        self._coordinator, self._shards = coordinator, shards
        self._error: BaseException | None = None
        self._is_over = False
        self._thread = threading.Thread(target=self._feed, daemon=True)
        self._thread.start()

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Raise the error that ended the list of shards early, unless the block has raised another error."""
        self._is_over = True
        if kind is not None:
            return
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _feed(self) -> None:
        try:
            for shard in self._shards:
                if self._is_over:
                    return
                # Sent one at a time, because an asynchronous actor may handle messages in another order.
                ray.get(self._coordinator.add_shard.remote(shard))
        except BaseException as error:  # noqa: BLE001
            self._error = error
        finally:
            # Closed in this thread, because the generator has set the log context of this thread and then resets it.
            if isinstance(self._shards, Generator):
                self._shards.close()
        self._coordinator.close.remote()
