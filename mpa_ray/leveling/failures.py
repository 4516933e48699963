"""Record why the attempts at a training run fail: which workers died, and the last error of each worker."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import ray.train
from ray.exceptions import RayActorError, WorkerCrashedError

from mpa_ray.observability.last_words import in_words
from mpa_ray.observability.worker_process import WorkerProcess
from mpa_ray.pipeline.coordination.deaths import DeathRegister, RecordDeath

_FOLLOWS = re.compile(
    r"connection (closed|reset|refused)|connectFullMesh|NCCL.*(remote|abort|timeout)|Broken pipe|Socket closed",
    re.IGNORECASE,
)
"""Errors of a worker that has only lost its connection to another worker, which has failed."""


class TrainingFailures:
    """Records the workers of one training run and why its attempts failed. Runs as an actor that outlives the
    workers."""

    def __init__(self, record_death: RecordDeath) -> None:
        self._deaths = DeathRegister(record_death)
        self._workers: dict[int, WorkerProcess] = {}
        self._num_failures, self._cause = 0, ""

    async def begin(self, rank: int, worker: WorkerProcess) -> None:
        """Record that a worker begins an attempt."""
        self._workers[rank] = worker

    async def end_attempt(self, errors: Mapping[int, str | None]) -> None:
        """Record why an attempt failed.

        Args:
            errors: The errors of the workers that failed, by rank; None for a worker that died without an error.
        """
        causes = {rank: error for rank, error in errors.items() if error is None or not _FOLLOWS.search(error)}
        self._num_failures += 1
        for rank, error in sorted((causes or errors).items(), key=lambda item: item[0], reverse=True):
            worker = self._workers.get(rank)
            died = await self._deaths.begin(worker, error) if worker is not None else error or "no error"
            self._cause = f"training worker {rank}: {died}"

    async def last_failure(self) -> tuple[int, str]:
        """How many attempts have failed, and why the last of them failed."""
        await self._deaths.settle()
        return self._num_failures, self._cause


class ReportFailures(ray.train.UserCallback):
    """Reports the errors of workers to `TrainingFailures`. Runs in Ray Train's controller."""

    def __init__(self, failures: Any) -> None:
        """Report to the actor `failures`, which is a `TrainingFailures`."""
        self._failures = failures

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:  # noqa: ARG002
        # The call is not awaited, because the controller must not wait while it replaces the workers.
        self._failures.end_attempt.remote({rank: _words_of(error) for rank, error in worker_exceptions.items()})


def _words_of(error: BaseException) -> str | None:
    """The error of a worker as text; None if the worker's process ended without an error."""
    failure = getattr(error, "health_check_failure", error)
    return None if isinstance(failure, RayActorError | WorkerCrashedError) else in_words(failure)
