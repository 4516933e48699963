"""Shards through a model on a Ray cluster: fetch -> model pool -> commit, as one streaming graph.

The only file that knows Ray Data. A row of the graph is one whole shard, so Ray never splits or merges a unit of work,
and a retry repeats exactly one shard.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import pickle
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, Generic, Protocol

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext, Dataset, TaskPoolStrategy
from ray.data._internal.cluster_autoscaler import ClusterAutoscaler
from ray.data._internal.execution import streaming_executor
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

import mpa_ray
from mpa_ray.config import LimitsConfig, ModelConfig, ReadingConfig, resolve_path
from mpa_ray.corpus.read import Content, Reader
from mpa_ray.engine.build import build_engine, images_in_flight
from mpa_ray.engine.process_group import end_group_with_this_process
from mpa_ray.engine.protocol import VisionLanguageModel
from mpa_ray.errors import ConfigError, RunError
from mpa_ray.imaging.decode import ImageProblem
from mpa_ray.models.shared_engines import Adapter
from mpa_ray.observability.log_context import about, names_of
from mpa_ray.observability.progress import say
from mpa_ray.observability.usage import Load, Usage
from mpa_ray.pipeline.coordinator import Attempt, PassCoordinator, Sighting, sha256
from mpa_ray.pipeline.telemetry import Counters, Gauges
from mpa_ray.records import Reason, RowT
from mpa_ray.run.dataset import ShardedDataset, ahead
from mpa_ray.stages.image_work import ImageWork, Stage, failed_images, outcomes
from mpa_ray.stages.visits import GivenUp, Visits

logger = logging.getLogger(__name__)

_AUXILIARY_CPUS = 0.25
"""CPUs that Ray sets aside for a fetch or commit task: they wait for files most of the time."""

_ASSUMED_BYTES = 2**20
"""Of a file whose size nothing tells until it is read."""

_ROWS_PER_TASK, _READING_AHEAD = 64, 4
"""Of training: images that one task reads, about, and tasks of a worker at a time."""

MALLOC = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "8589934592"}
"""Keeps glibc from returning every large tensor to the system: without, a training step on a CPU takes several times
as long, most of it in page faults."""


@dataclass(frozen=True)
class Pass(Generic[RowT]):
    """One pass of one model over the shards of a dataset."""

    name: str
    """Names the actors in Ray's dashboard, as in `annotate:teacher`."""
    source: ShardedDataset[Any]
    target: ShardedDataset[RowT]
    model: ModelConfig
    make_stage: Callable[[VisionLanguageModel], Stage[Any, RowT]]
    """Called in the actor; it must survive pickling."""
    reader: Reader
    reading: ReadingConfig
    limits: LimitsConfig
    needs_image: Callable[[Any], bool] = lambda _: True
    """Whether a row's image has to be read."""
    skips_duplicates: bool = False
    """Whether an image with the same bytes as an earlier one is left out."""
    adapters: Mapping[str, Adapter] = field(default_factory=dict)
    """Of the model, those that the stage's requests name."""
    num_models: int = 1
    """Asked about each image: the model and its adapters."""
    run: str = ""
    """The run directory."""

    @property
    def names(self) -> dict[str, str]:
        """What is logged about it carries these."""
        return {"run": self.run, **names_of(self.name)}


@dataclass(frozen=True)
class ShardDone:
    """What the driver learns of a committed shard."""

    shard: str
    num_images: int
    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Rows by state and reason."""
    failed: Counter[str] = field(default_factory=Counter)
    """Images of which no row but failed, by reason."""
    visit_s: float = 0.0
    """From its coming to an engine to its last image."""
    effort: Usage = field(default_factory=Usage)
    """What its node spent until it was done, in part on other shards."""


def run_pass(work: Pass[Any], shards: Iterable[str], committed: Sequence[str] = ()) -> Iterator[ShardDone]:
    """Send the shards through the model and commit each; yields them as they are done, in any order.

    Args:
        work: What is done.
        shards: Those that are to be done. They may become known over time: engines start meanwhile. An error raised
            here ends the pass when what was known before is done.
        committed: Those that are done already, for telling duplicates of their images.

    Raises:
        RunError: engines died on one shard as often as is allowed, or files of the run cannot be read or written.
    """
    _prepare_ray_data()
    # An actor has another working directory.
    model = work.model.model_copy(update={"model": resolve_path(work.model.model)})
    check_resources(f"{work.name}: cpus_per_replica, gpus_per_replica", model.cpus_per_replica, model.gpus_per_replica)
    in_flight = images_in_flight(model)
    # A shard's last images leave slots free; the next shards fill them.
    shards_in_flight = max(2, 1 + math.ceil(in_flight / 64))
    ledger = _start_ledger(work, committed)
    feed = _Feed(ledger, shards)
    graph = (
        ray.data.from_items([{"pass": work.name}])
        .flat_map(Shards(ledger), num_cpus=0)
        .map(Fetch(work, ledger), compute=TaskPoolStrategy(work.reading.num_shards), num_cpus=_AUXILIARY_CPUS)
        .map_batches(
            ModelActor,
            fn_constructor_args=(work, model, ledger),
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
        .map(Commit(work.target), num_cpus=_AUXILIARY_CPUS)
    )
    # A row is a whole shard, and it leaves each step by itself as soon as it is there.
    graph.context.target_max_block_size = 1
    with feed:
        yield from _done(work, graph, ledger)


def _done(work: Pass[Any], graph: Dataset, ledger: Any) -> Iterator[ShardDone]:
    counters = Counters(work.name)
    for row in graph.iter_rows():
        if row["failure"]:
            raise RunError(f"{work.name}: {row['failure']} The same command continues.")
        ledger.end.remote(row["shard"])
        rows, failed = pickle.loads(row["outcomes"])
        done = ShardDone(row["shard"], row["num_images"], rows, failed, row["visit_s"], pickle.loads(row["effort"]))
        # Here and not in the workers: once for each shard, however often it was begun.
        counters.count(done.num_images, done.outcomes, done.effort)
        failed_by_reason = {f"failed_{reason}": number for reason, number in failed.items()}
        logger.info(
            "shard committed",
            extra={
                "shard": done.shard,
                "num_images": done.num_images,
                "visit_s": round(done.visit_s, 3),
                **failed_by_reason,
            },
        )
        yield done


class _Feed:
    """Tells the ledger of shards as they become known, from a thread of the driver."""

    def __init__(self, ledger: Any, shards: Iterable[str]) -> None:
        self._ledger, self._shards = ledger, shards
        self._error: BaseException | None = None
        self._is_over = False
        self._thread = threading.Thread(target=self._tell, daemon=True)
        self._thread.start()

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Behind the last shard. Raises what ended the list before its time."""
        self._is_over = True
        if kind is not None:
            return
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _tell(self) -> None:
        try:
            for shard in self._shards:
                if self._is_over:
                    return
                # Waited for: an asynchronous actor takes messages in any order.
                ray.get(self._ledger.add.remote(shard))
        except BaseException as error:  # noqa: BLE001
            self._error = error
        finally:
            # Here, where it was begun: it may be timing what it does.
            if isinstance(self._shards, Generator):
                self._shards.close()
        self._ledger.complete.remote()


@dataclass(frozen=True)
class Shards:
    """The rows that a graph begins with: the ledger's shards in their order, each as soon as it is known."""

    ledger: Any

    def __call__(self, _: dict[str, Any]) -> Iterator[dict[str, Any]]:
        place = 0
        while (found := ray.get(self.ledger.behind.remote(place))) is not None:
            place += len(found)
            yield from ({"shard": shard} for shard in found)


def _start_ledger(work: Pass[Any], committed: Sequence[str]) -> Any:
    """Beside the driver, where it lives as long as the pass."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    ledger = ray.remote(num_cpus=0, scheduling_strategy=here)(PassCoordinator).remote(
        work.limits, work.reading.max_bytes_in_flight
    )
    if work.skips_duplicates:
        known = ahead(lambda shard: work.target.columns(shard, ["image_id", "content_sha256"]), committed)
        ray.get(
            [
                ledger.know.remote({shard: [_sighting(row) for row in rows]})
                for shard, rows in zip(committed, known, strict=True)
            ]
        )
    return ledger


def _sighting(row: dict[str, Any]) -> Sighting | None:
    return Sighting(row["image_id"], row["content_sha256"]) if row["content_sha256"] else None


@dataclass(frozen=True)
class Fetch:
    """Read a shard's rows and the files of the images that are asked about."""

    work: Pass[Any]
    ledger: Any

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        with about(**self.work.names, shard=row["shard"]):
            return self._fetched(row)

    def _fetched(self, row: dict[str, Any]) -> dict[str, Any]:
        started = time.monotonic()
        try:
            images = self._images(row["shard"])
        except (OSError, ValueError) as error:
            # Not of an image, but of the run: an earlier step's rows have gone or are damaged.
            images, failure = [], f"{type(error).__name__}: {error}."
        else:
            failure = ""
        num_bytes = sum(len(image.content) for image in images if isinstance(image.content, bytes))
        effort = Usage(num_bytes_read=num_bytes, read_s=time.monotonic() - started)
        return {
            "shard": row["shard"],
            "images": pickle.dumps(images),
            "failure": failure,
            "effort": pickle.dumps(effort),
        }

    def _images(self, shard: str) -> list[ImageWork[Any]]:
        groups = [tuple(found) for _, found in groupby(self.work.source.read(shard), key=lambda r: r.image_id)]
        wanted = [group for group in groups if any(map(self.work.needs_image, group))]
        num_bytes = sum(_expected_bytes(group[0]) for group in wanted)
        while not ray.get(self.ledger.acquire.remote(shard, num_bytes)):
            pass
        found = self.work.reader.read([group[0].uri for group in wanted])
        contents = dict(zip((group[0].image_id for group in wanted), found, strict=True))
        sightings = self._look_for_duplicates(shard, groups, contents)
        read = (content for content in contents.values() if isinstance(content, bytes))
        ray.get(self.ledger.correct.remote(shard, sum(map(len, read))))
        return [
            ImageWork(
                group[0].image_id,
                group[0].uri,
                group,
                contents.get(group[0].image_id),
                seen.content_sha256 if seen else None,
            )
            for group, seen in zip(groups, sightings, strict=True)
        ]

    def _look_for_duplicates(
        self, shard: str, groups: list[tuple[Any, ...]], contents: dict[str, Content]
    ) -> list[Sighting | None]:
        """Hashes of what was read; the content of an image that was seen before becomes a reason."""
        if not self.work.skips_duplicates:
            return [None] * len(groups)
        found = ((group[0].image_id, contents.get(group[0].image_id)) for group in groups)
        sightings = [
            Sighting(i, sha256(content)) if isinstance(content, bytes) and content else None for i, content in found
        ]
        while (found_earlier := ray.get(self.ledger.claim.remote(shard, sightings))) is None:
            pass
        for seen, earlier in zip(sightings, found_earlier, strict=True):
            if seen is not None and earlier is not None:
                contents[seen.image_id] = ImageProblem(Reason.DUPLICATE_OF, earlier)
        return sightings


def _expected_bytes(row: Any) -> int:
    known: int | None = getattr(row, "num_bytes", None)
    return _ASSUMED_BYTES if known is None else known


@dataclass(frozen=True)
class _Log:
    """The ledger's record of attempts, over the wire."""

    ledger: Any

    async def begin(self, shard: str) -> Attempt:
        attempt: Attempt = await self.ledger.begin.remote(shard)
        return attempt

    async def alone(self, shard: str, image_id: str | None) -> None:
        await self.ledger.alone.remote(shard, image_id)

    async def died(self, in_flight: Mapping[str, Sequence[str]], error: str) -> None:
        await self.ledger.died.remote(in_flight, error)


class ModelActor:
    """One replica of a model with its engine; several shards are in it at once, so that no shard's end idles it."""

    def __init__(self, work: Pass[Any], model: ModelConfig, ledger: Any) -> None:
        self._watcher = end_group_with_this_process()
        self._effort, load = Usage(), Load()
        self._gauges = Gauges(work.name, load)
        self._showing: asyncio.Task[None] | None = None
        self._cannot_start = ""
        self._names, started = work.names, time.monotonic()
        with about(**self._names):
            try:
                engine = build_engine(
                    model, work.adapters, work.reader.object_store, work.limits.request_timeout_s, self._effort, load
                )
            except Exception as error:
                # It would come again: the driver is told in a sentence rather than by Ray in a hundred lines.
                logger.exception("the engine of %s cannot start", model.model)
                self._cannot_start = f"the engine of {model.model} cannot start ({type(error).__name__}: {error})."
                return
            logger.info(
                "the engine of %s has started", model.model, extra={"wall_s": round(time.monotonic() - started, 3)}
            )
        stage = work.make_stage(engine)
        self._visits = Visits(stage, images_in_flight(model), _Log(ledger), _end_process, self._effort, load)

    async def __call__(self, batch: pa.Table) -> pa.Table:
        self._showing = self._showing or asyncio.create_task(self._gauges.keep_showing())
        shard = batch["shard"][0].as_py()
        images = pickle.loads(batch["images"][0].as_py())
        rows, failure = [], self._cannot_start or batch["failure"][0].as_py()
        started = time.monotonic()
        if not failure:
            try:
                with about(**self._names, shard=shard):
                    rows = await self._visits.visit(shard, images)
            except GivenUp as error:
                failure = f"{error}."
        effort = self._effort.taken()
        effort += pickle.loads(batch["effort"][0].as_py())
        return pa.table(
            {
                "shard": [shard],
                "num_images": [len(images)],
                "rows": [pickle.dumps(rows)],
                "failure": [failure],
                "visit_s": [time.monotonic() - started],
                "effort": [pickle.dumps(effort)],
            }
        )


async def _end_process(error: str) -> None:
    """An engine cannot be mended in place: Ray restarts the actor and sends its shards again."""
    logger.error("the engine died: %s", error)
    logging.shutdown()
    os._exit(1)


@dataclass(frozen=True)
class Commit(Generic[RowT]):
    """Write and publish a shard's rows."""

    target: ShardedDataset[RowT]

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        if row["failure"]:
            return {**row, "outcomes": b""}
        started = time.monotonic()
        rows: list[RowT] = pickle.loads(row["rows"])
        try:
            if not self.target.commit(row["shard"], rows):
                rows = self.target.read(row["shard"])
        except (RunError, OSError, ValueError) as error:
            return {**row, "rows": b"", "outcomes": b"", "failure": str(error)}
        effort: Usage = pickle.loads(row["effort"])
        effort.write_s += time.monotonic() - started
        found = outcomes(rows), failed_images(rows)
        return {**row, "rows": b"", "outcomes": pickle.dumps(found), "effort": pickle.dumps(effort)}


class HasImage(Protocol):
    """A row about one image file."""

    @property
    def uri(self) -> str: ...


def with_images(
    num_steps: int,
    first: int,
    steps: Callable[[int, int], Iterable[Sequence[Sequence[HasImage]]]],
    num_rows: int,
    reader: Reader,
) -> Dataset:
    """A worker's training steps in their order with their images' bytes: columns `step` and `contents`, pickled.

    A file that cannot be read is empty.

    Args:
        num_steps: Of the epoch.
        first: From which on.
        steps: Reads the steps from one up to another, each of them micro-batches of rows; called where images are read.
        num_rows: Of a step, about.
        reader: Of images.
    """

    def fetch(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
        for step in steps(row["first"], row["last"]):
            found = reader.read([item.uri for batch in step for item in batch])
            contents = [c if isinstance(c, bytes) else b"" for c in found]
            yield {"step": pickle.dumps(step), "contents": pickle.dumps(contents)}

    _prepare_ray_data()
    size = max(1, _ROWS_PER_TASK // num_rows)
    parts = [{"first": at, "last": min(at + size, num_steps)} for at in range(first, num_steps, size)]
    items = ray.data.from_items(parts, override_num_blocks=max(1, len(parts)))
    found = items.flat_map(fetch, num_cpus=_AUXILIARY_CPUS, compute=TaskPoolStrategy(_READING_AHEAD))
    # A resumed epoch must meet the same batches.
    found.context.execution_options.preserve_order = True
    return found


class _AutoscalerFactory:
    """Makes Ray Data's autoscaler for a pass, and ours around it."""

    def __init__(self, make: Callable[..., ClusterAutoscaler]) -> None:
        self._make = make

    def __call__(self, *arguments: Any, **named: Any) -> ClusterAutoscaler:
        return _WholeClusterAutoscaler(self._make(*arguments, **named))


class _WholeClusterAutoscaler(ClusterAutoscaler):
    """Ray Data's autoscaler of a pass, which may use all CPUs and GPUs of the cluster.

    Ray reserves for each of several passes what it would like to have, for the first one first, and divides the rest
    of every node in whole CPUs and GPUs: a second pass beside a busy one then gets no CPU to fetch images with, and
    stands still. Here whoever starts passes sees to it that they fit in beside each other; pools that may grow take
    what is free.
    """

    def __init__(self, ray_data: ClusterAutoscaler) -> None:
        self._ray_data = ray_data

    def try_trigger_scaling(self) -> None:
        self._ray_data.try_trigger_scaling()

    def on_executor_shutdown(self) -> None:
        self._ray_data.on_executor_shutdown()

    def get_total_resources(self) -> Any:
        total = ray.cluster_resources()
        return self._ray_data.get_total_resources().copy(cpu=total.get("CPU", 0.0), gpu=total.get("GPU", 0.0))


def _prepare_ray_data() -> None:
    """Our own progress line stands for Ray Data's bars and notices; its errors are still logged."""
    if not isinstance(streaming_executor.create_cluster_autoscaler, _AutoscalerFactory):
        streaming_executor.create_cluster_autoscaler = _AutoscalerFactory(streaming_executor.create_cluster_autoscaler)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # Where a pass has fewer shards than may be read at a time.
    warnings.filterwarnings("ignore", "The maximum number of concurrent tasks", UserWarning)


_starting = threading.Lock()


def start_ray() -> None:
    """Join the cluster of this job, or start Ray on this machine alone; from any thread."""
    with _starting:
        if ray.is_initialized():
            return
        started: Future[None] = Future()
        threading.Thread(target=_start_and_stay, args=(started,), daemon=True).start()
        started.result()


def _start_and_stay(started: Future[None]) -> None:
    """Linux kills the processes of a Ray on this machine, which are to go with their parent, when this thread ends.

    Ray warns that outside of the main thread it takes no SIGTERM: that is for the job to do.
    """
    logging.getLogger("ray._private.worker").addFilter(lambda record: "SIGTERM handler" not in str(record.msg))
    try:
        _start_ray()
    except BaseException as error:  # noqa: BLE001
        started.set_exception(error)
        return
    started.set_result(None)
    threading.Event().wait()


def _start_ray() -> None:
    # Ray's workers, and the engines in them, would otherwise yield to every other process of the machine.
    os.environ.setdefault("RAY_worker_niceness", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    environment = {"env_vars": {"PYTHONPATH": os.pathsep.join(_import_paths()), **MALLOC}}
    if "RAY_ADDRESS" in os.environ:
        ray.init(runtime_env=environment, log_to_driver=False)
        return
    # One engine and the small tasks around it must fit side by side even on one core.
    num_cpus = max(2, len(os.sched_getaffinity(0))) + 1
    ray.init(
        address="local",
        num_cpus=num_cpus,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env=environment,
        logging_level="ERROR",
    )


def cluster_resources() -> tuple[float, float]:
    """CPUs and GPUs of all nodes that are up."""
    start_ray()
    total = ray.cluster_resources()
    return total.get("CPU", 0.0), total.get("GPU", 0.0)


def check_resources(field: str, num_cpus: float, num_gpus: float) -> None:
    """Compare what one actor or worker needs with the nodes that are up.

    Raises:
        ConfigError: none is large enough, and no autoscaler could bring a larger one.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if any(node.get("CPU", 0) >= num_cpus and node.get("GPU", 0) >= num_gpus for node in nodes):
        return
    largest = max(nodes, key=lambda node: (node.get("GPU", 0), node.get("CPU", 0)))
    problem = (
        f"needs {num_cpus:g} CPUs and {num_gpus:g} GPUs on one node; the largest now has "
        f"{largest.get('CPU', 0):g} CPUs and {largest.get('GPU', 0):g} GPUs."
    )
    if "RAY_ADDRESS" in os.environ:
        say(f"WARNING: {field} {problem} Waiting for the cluster to grow.")
        return
    raise ConfigError(field, num_gpus or num_cpus, problem, "Lower it, or set RAY_ADDRESS to a cluster that has it.")


def _import_paths() -> list[str]:
    root = str(Path(mpa_ray.__file__).parents[1])
    return [root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
