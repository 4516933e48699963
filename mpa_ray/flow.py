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
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Generic, Protocol

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext, Dataset, ExecutionOptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mpa_ray.config import ModelConfig, ObjectStoreConfig, resolve_path
from mpa_ray.corpus.files import Files
from mpa_ray.engine.build import build_engine, images_in_flight
from mpa_ray.engine.process_group import end_group_with_this_process
from mpa_ray.engine.protocol import EngineDied, VisionLanguageModel
from mpa_ray.errors import ConfigError, RunError
from mpa_ray.progress import say
from mpa_ray.records import Prediction, Row, RowT
from mpa_ray.stages.shard import ImageWork, Stage, visit_all
from mpa_ray.store.dataset import ShardedDataset

logger = logging.getLogger(__name__)

_AUXILIARY_CPUS = 0.25
"""CPUs that Ray sets aside for a fetch or commit task: they wait for files most of the time."""

_MALLOC = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "8589934592"}
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
    files: Files
    max_engine_deaths: int
    """Deaths of an engine on one shard, within one command, after which the command gives up."""
    needs_image: Callable[[Any], bool] = lambda _: True
    """Whether a row's image has to be read."""


@dataclass(frozen=True)
class ShardDone:
    """What the driver learns of a committed shard."""

    shard: str
    num_images: int
    outcomes: Counter[str] = field(default_factory=Counter)
    """Rows by `state` or `state:reason`."""


def run_pass(work: Pass[Any], shards: Sequence[str]) -> Iterator[ShardDone]:
    """Send the shards through the model and commit each; yields them as they are done, in any order.

    Raises:
        RunError: engines died on one shard as often as is allowed.
    """
    _quiet()
    # An actor has another working directory.
    model = work.model.model_copy(update={"model": resolve_path(work.model.model)})
    check_resources(f"{work.name}: cpus_per_replica, gpus_per_replica", model.cpus_per_replica, model.gpus_per_replica)
    in_flight = images_in_flight(model)
    # A shard's last images leave slots free; the next shards fill them.
    shards_in_flight = max(2, 1 + math.ceil(in_flight / 64))
    attempts = _attempt_log()
    done = (
        ray.data.from_items([{"shard": s} for s in shards], override_num_blocks=len(shards))
        .map(Fetch(work.source, work.needs_image, work.files), num_cpus=_AUXILIARY_CPUS)
        .map_batches(
            ModelActor,
            fn_constructor_args=(model, work.files.object_store, work.make_stage, attempts, work.max_engine_deaths),
            batch_size=1,
            batch_format="pyarrow",
            zero_copy_batch=True,
            compute=ActorPoolStrategy(
                size=model.num_replicas,
                max_tasks_in_flight_per_actor=shards_in_flight + 1,
                max_concurrent_calls_per_actor=shards_in_flight,
            ),
            num_cpus=model.cpus_per_replica,
            num_gpus=model.gpus_per_replica,
        )
        .map(Commit(work.target), num_cpus=_AUXILIARY_CPUS)
    )
    for row in done.iter_rows():
        if row["failure"]:
            raise RunError(f"{work.name}: {row['failure']}")
        yield ShardDone(row["shard"], row["num_images"], Counter(pickle.loads(row["outcomes"])))


@dataclass(frozen=True)
class Fetch:
    """Read a shard's rows and the files of the images that are asked about."""

    source: ShardedDataset[Any]
    needs_image: Callable[[Any], bool]
    files: Files

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        rows = self.source.read(row["shard"])
        groups = [tuple(found) for _, found in groupby(rows, key=lambda r: r.image_id)]
        wanted = [any(map(self.needs_image, group)) for group in groups]
        uris = [group[0].uri for group, want in zip(groups, wanted, strict=True) if want]
        contents = iter(self.files.read(uris))
        images = []
        for group, want in zip(groups, wanted, strict=True):
            content, error = next(contents) if want else (None, None)
            images.append(ImageWork(group[0].image_id, group[0].uri, group, content, error))
        return {"shard": row["shard"], "images": pickle.dumps(images)}


class AttemptLog:
    """How often each shard was begun in this pass; an actor of its own, which outlives the model actors.

    A model actor that was killed (out of memory, a fault in a codec) cannot tell of it as one whose engine died can:
    either way Ray sends the shard again, and without a bound would do so for ever.
    """

    def __init__(self) -> None:
        self._num_begun: Counter[str] = Counter()
        self._last_words: dict[str, str] = {}

    def begin(self, shard: str) -> tuple[int, str]:
        """Count an attempt: how many there are now, and what the one before said when it died."""
        self._num_begun[shard] += 1
        return self._num_begun[shard], self._last_words.get(shard, "no reason was left; see Ray's logs for the actor")

    def note(self, shard: str, error: str) -> None:
        self._last_words[shard] = error


def _attempt_log() -> Any:
    """Beside the driver, where it lives as long as the pass."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=here)(AttemptLog).remote()


class ModelActor:
    """One replica of a model with its engine; several shards are in it at once, so that no shard's end idles it."""

    def __init__(
        self,
        model: ModelConfig,
        object_store: ObjectStoreConfig,
        make_stage: Callable[[VisionLanguageModel], Stage[Any, Any]],
        attempts: Any,
        max_deaths: int,
    ) -> None:
        self._watcher = end_group_with_this_process()
        self._attempts, self._max_deaths = attempts, max_deaths
        self._stage = make_stage(build_engine(model, object_store))
        self._slots = asyncio.Semaphore(images_in_flight(model))

    async def __call__(self, batch: pa.Table) -> pa.Table:
        shard = batch["shard"][0].as_py()
        images = pickle.loads(batch["images"][0].as_py())
        num_begun, last_words = await self._attempts.begin.remote(shard)
        rows, failure = [], ""
        if num_begun > self._max_deaths:
            failure = f"the engine died {num_begun - 1} times on shard {shard}, the last time with: {last_words}"
        else:
            rows = await self._visit(shard, images)
        return pa.table(
            {"shard": [shard], "num_images": [len(images)], "rows": [pickle.dumps(rows)], "failure": [failure]}
        )

    async def _visit(self, shard: str, images: Sequence[ImageWork[Any]]) -> list[Any]:
        try:
            return await visit_all(self._stage.visit, images, self._slots)
        except* EngineDied as died:
            logger.error("shard %s: the engine died: %s", shard, died.exceptions[0])
            await self._attempts.note.remote(shard, str(died.exceptions[0]))
            # An engine cannot be mended in place: Ray restarts the actor and sends the shard again.
            logging.shutdown()
            os._exit(1)


@dataclass(frozen=True)
class Commit(Generic[RowT]):
    """Write and publish a shard's rows."""

    target: ShardedDataset[RowT]

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        if row["failure"]:
            return {**row, "outcomes": b""}
        rows: list[RowT] = pickle.loads(row["rows"])
        if not self.target.commit(row["shard"], rows):
            rows = self.target.read(row["shard"])
        outcomes = Counter(map(_outcome, rows))
        return {**row, "rows": b"", "outcomes": pickle.dumps(outcomes)}


def _outcome(row: Row) -> str:
    if isinstance(row, Prediction):
        return "unanswered" if row.prediction is None else "answered"
    state, reason = getattr(row, "state", ""), getattr(row, "reason", None)
    return f"{state}:{reason}" if reason else state


class HasImage(Protocol):
    """A row about one image file."""

    @property
    def uri(self) -> str: ...


def samples_with_images(rows: Sequence[HasImage], rows_per_block: int, files: Files) -> Dataset:
    """Rows in their order, each with its image file's bytes, for training: columns `row` (pickled) and `content`."""

    def fetch(batch: dict[str, Any]) -> dict[str, Any]:
        found = files.read([pickle.loads(row).uri for row in batch["row"]])
        return {"row": batch["row"], "content": [content or b"" for content, _ in found]}

    _quiet()
    num_blocks = math.ceil(len(rows) / rows_per_block)
    items = ray.data.from_items([{"row": pickle.dumps(r)} for r in rows], override_num_blocks=num_blocks)
    return items.map_batches(fetch, batch_size=rows_per_block, num_cpus=_AUXILIARY_CPUS)


def _quiet() -> None:
    """Our own progress line stands for Ray Data's bars and notices; its errors are still logged."""
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False


def ordered() -> ExecutionOptions:
    """How training takes `samples_with_images`: in order, so that a resumed epoch meets the same batches."""
    return ExecutionOptions(preserve_order=True)


def start_ray() -> None:
    """Join the cluster of this job, or start Ray on this machine alone."""
    if ray.is_initialized():
        return
    # Ray's workers, and the engines in them, would otherwise yield to every other process of the machine.
    os.environ.setdefault("RAY_worker_niceness", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    environment = {"env_vars": {"PYTHONPATH": os.pathsep.join(_import_paths()), **_MALLOC}}
    if "RAY_ADDRESS" in os.environ:
        ray.init(runtime_env=environment, log_to_driver=False)
        return
    # One engine and the small tasks around it must fit side by side even on one core.
    num_cpus = max(2, len(os.sched_getaffinity(0))) + 1
    ray.init(address="local", num_cpus=num_cpus, include_dashboard=False, log_to_driver=False,
             runtime_env=environment, logging_level="ERROR")  # fmt: skip


def check_resources(field: str, num_cpus: float, num_gpus: float) -> None:
    """Compare what one actor or worker needs with the nodes that are up.

    Raises:
        ConfigError: none is large enough, and no autoscaler could bring a larger one.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if any(node.get("CPU", 0) >= num_cpus and node.get("GPU", 0) >= num_gpus for node in nodes):
        return
    largest = max(nodes, key=lambda node: (node.get("GPU", 0), node.get("CPU", 0)))
    problem = (f"needs {num_cpus:g} CPUs and {num_gpus:g} GPUs on one node; the largest now has "
               f"{largest.get('CPU', 0):g} CPUs and {largest.get('GPU', 0):g} GPUs.")  # fmt: skip
    if "RAY_ADDRESS" in os.environ:
        say(f"WARNING: {field} {problem} Waiting for the cluster to grow.")
        return
    raise ConfigError(field, num_gpus or num_cpus, problem, "Lower it, or set RAY_ADDRESS to a cluster that has it.")


def _import_paths() -> list[str]:
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    return [root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
