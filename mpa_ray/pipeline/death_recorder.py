"""Records the deaths of processes. Each death is recorded on the node that has the log of the process."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import ray
from ray.core.generated import common_pb2, gcs_pb2
from ray.exceptions import NodeDiedError, RayError, TaskUnschedulableError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mpa_ray.config import ObjectStoreConfig
from mpa_ray.observability.last_words import in_words
from mpa_ray.observability.worker_process import WorkerProcess
from mpa_ray.run.logs import record_death, record_lost_process
from mpa_ray.run.phase_record import PhaseKey
from mpa_ray.storage.open import open_storage

_TIMEOUT_S = 60.0
"""The time limit of one record, long enough for Ray to start a process on the node."""


@dataclass(frozen=True)
class DeathRecorder:
    """Records deaths of processes of one phase; implements `coordination.deaths.RecordDeath`."""

    run_dir: str
    object_store: ObjectStoreConfig
    key: PhaseKey

    async def __call__(self, process: WorkerProcess, error: str | None) -> str:
        if not self.run_dir:
            return error or "the process ended without an error"
        storage = await asyncio.to_thread(open_storage, self.run_dir, self.object_store)
        task: Any = ray.remote(num_cpus=0, max_retries=1)(record_death)
        on_node = NodeAffinitySchedulingStrategy(process.node_id, soft=False)
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                death = await task.options(scheduling_strategy=on_node).remote(storage, self.key, process, error)
        except (RayError, TimeoutError) as failed:
            cause = error or _without_record(process, failed)
            death = await asyncio.to_thread(record_lost_process, storage, self.key, process, cause)
        words: str = death.in_words(storage.root)
        return words


def _without_record(process: WorkerProcess, failed: RayError | TimeoutError) -> str:
    """The cause of a death that could not be recorded on its node."""
    if isinstance(failed, TimeoutError | TaskUnschedulableError | NodeDiedError):
        return f"its node {process.host} has ended or cannot be reached ({in_words(failed)})."
    return f"the process ended, and its log on {process.host} cannot be read ({in_words(failed)})."


def current_process(role: str) -> WorkerProcess:
    """Describe the current process, which is a Ray worker, for the record of its death."""
    context = ray.get_runtime_context()
    return WorkerProcess.current(role, context.get_node_id(), context.get_worker_id())


async def was_taken_away(process: WorkerProcess) -> bool:
    """Whether a dead process was ended from outside: its node has ended, or the process was asked to end.

    Implements `coordination.deaths.WasTakenAway`.
    """
    return await asyncio.to_thread(lambda: _has_ended(process.node_id) or _was_asked_to_end(process.worker_id))


def _has_ended(node_id: str) -> bool:
    """Whether Ray says that a node has ended."""
    is_alive = {node["NodeID"]: node["Alive"] for node in ray.nodes()}
    return bool(node_id) and not is_alive.get(node_id, False)


def _was_asked_to_end(worker_id: str) -> bool:
    """Whether, according to Ray, a process was ended by Ray itself or by a SIGTERM."""
    if not worker_id:
        return False
    # Ray's public functions that return this record need the dashboard.
    accessor = ray._private.state.state._connect_and_get_accessor()
    record = accessor.get_worker_info(ray.WorkerID.from_hex(worker_id))
    if record is None:
        return False
    worker = gcs_pb2.WorkerTableData.FromString(record)
    was_ended = worker.exit_type == common_pb2.WorkerExitType.INTENDED_SYSTEM_EXIT
    return not worker.is_alive and (was_ended or "SIGTERM" in worker.exit_detail)
