"""How the coordinator of a pass and a training notice deaths, without Ray."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from ray.exceptions import RayTaskError, TaskUnschedulableError, WorkerCrashedError

from mpa_ray.config import LimitsConfig, ObjectStoreConfig
from mpa_ray.leveling.failures import TrainingFailures
from mpa_ray.observability.worker_process import WorkerProcess
from mpa_ray.pipeline.coordination.coordinator import PassCoordinator
from mpa_ray.pipeline.death_recorder import DeathRecorder, was_taken_away
from mpa_ray.run.logs import deaths
from mpa_ray.run.phase_record import PhaseKey
from mpa_ray.storage.local import LocalStorage


def process(pid: int) -> WorkerProcess:
    return WorkerProcess("engine of teacher", pid, "node", "", (), None)


@dataclass
class Recorder:
    """Takes a moment to record a death; names the process and what it reported."""

    recorded: list[tuple[int, str | None]] = field(default_factory=list)

    async def __call__(self, process: WorkerProcess, error: str | None) -> str:
        await asyncio.sleep(0.001)
        self.recorded.append((process.pid, error))
        return f"{error or 'no error'} of process {process.pid}"


def coordinator(recorder: Recorder, **limits: int) -> PassCoordinator:
    return PassCoordinator(LimitsConfig.model_validate(limits), 100, recorder)


def test_a_process_that_dies_silently_is_recorded_once_for_all_its_shards() -> None:
    recorder = Recorder()

    async def work() -> list[str | None]:
        state = coordinator(recorder, max_engine_deaths=2)
        for pid in (1, 2, 3):
            attempts = [await state.begin_attempt(shard, process(pid), []) for shard in ("a", "b")]
        assert state.latest_death() == (2, "engine of teacher: no error of process 2")
        return [attempt.given_up for attempt in attempts]

    # The engines died without any image that could have killed them.
    last = "the last time with: no error of process 2"
    assert asyncio.run(work()) == [f"the engine died 2 times on shard {shard}, {last}" for shard in "ab"]
    assert recorder.recorded == [(1, None), (2, None)]


def test_the_message_has_what_the_process_reported() -> None:
    recorder = Recorder()

    async def work() -> list[str | None]:
        state = coordinator(recorder, max_image_deaths=1, max_poison_images=0)
        problems = []
        for pid in (1, 2):
            problems.append((await state.begin_attempt("a", process(pid), ["x", "y"])).given_up)
            await state.next_group("a", process(pid))
            await state.report_death(process(pid), {"a": ["x"]}, "CUDA out of memory")
        return [*problems, (await state.begin_attempt("a", process(3), ["x", "y"])).given_up]

    *before, given_up = asyncio.run(work())
    assert before == [None, None]
    assert given_up == (
        "1 image of shard a killed engines, more than limits.max_poison_images = 0, the last time with: "
        "CUDA out of memory of process 2"
    )
    assert recorder.recorded == [(1, "CUDA out of memory"), (2, "CUDA out of memory")]


def test_a_shard_that_was_visited_or_that_a_live_process_repeats_is_no_death() -> None:
    recorder = Recorder()

    async def work() -> None:
        state = coordinator(recorder, max_engine_deaths=1)
        await state.begin_attempt("a", process(1), [])
        await state.report_visited("a", process(1))
        assert (await state.begin_attempt("a", process(2), [])).given_up is None
        assert (await state.begin_attempt("a", process(2), [])).given_up is None

    asyncio.run(work())
    assert recorder.recorded == []


def test_an_engine_that_is_lost_with_its_node_is_no_death() -> None:
    """This holds while it visits images, even a single one, and while it starts. The loss is still recorded."""
    recorder = Recorder()

    async def lost(process: WorkerProcess) -> bool:
        return process.pid != 8

    async def work() -> tuple[list[str], frozenset[str]]:
        limits = LimitsConfig(max_engine_deaths=1, max_image_deaths=1)
        state = PassCoordinator(limits, 100, recorder, lost)
        starts = []
        for pid in range(1, 8):
            starts.append(await state.begin_start("actor", process(pid)))
            attempt = await state.begin_attempt("a", process(pid), ["x"])
            assert (attempt.given_up, attempt.suspects, attempt.needs_probe) == (None, frozenset(), False)
            if pid % 2:
                await state.report_death(process(pid), {"a": ["x"]}, "SIGTERM")
        await state.begin_attempt("a", process(8), ["x"])
        return starts, (await state.begin_attempt("a", process(9), ["x"])).suspects

    starts, suspects = asyncio.run(work())
    assert set(starts) == {""}
    assert suspects == {"x"}
    assert [pid for pid, _ in recorder.recorded] == list(range(1, 9))


def test_a_process_is_taken_away_if_ray_says_that_its_node_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [{"NodeID": "up", "Alive": True}, {"NodeID": "down", "Alive": False}]
    monkeypatch.setattr("mpa_ray.pipeline.death_recorder.ray.nodes", lambda: nodes)
    processes = [WorkerProcess("engine of teacher", 1, "host", node, (), None) for node in ("up", "down", "gone", "")]
    assert [asyncio.run(was_taken_away(process)) for process in processes] == [False, True, True, False]


class FailingTask:
    """A task of Ray that ends with an error."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def __call__(self, _: object) -> FailingTask:
        return self

    def options(self, **_: object) -> FailingTask:
        return self

    async def remote(self, *_: object) -> None:
        raise self._error


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (TaskUnschedulableError("the node is gone"), "its node host has ended or cannot be reached"),
        (TimeoutError(), "its node host has ended or cannot be reached"),
        (RayTaskError("record_death", "KeyError: 'x'", KeyError("x")), "the process ended, and its log on host cannot"),
        (WorkerCrashedError(), "the process ended, and its log on host cannot be read"),
    ],
)
@pytest.mark.parametrize("reported", [None, "CUDA out of memory"])
def test_a_death_that_cannot_be_recorded_on_its_node_has_a_true_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, cause: str, reported: str | None
) -> None:
    monkeypatch.setattr("mpa_ray.pipeline.death_recorder.ray.remote", lambda **_: FailingTask(error))
    threads: list[str] = []
    create = LocalStorage.create

    def record_thread(storage: LocalStorage, path: str, content: bytes) -> bool:
        threads.append(threading.current_thread().name)
        return create(storage, path, content)

    monkeypatch.setattr(LocalStorage, "create", record_thread)
    recorder = DeathRecorder(str(tmp_path), ObjectStoreConfig(), PhaseKey("annotate"))
    dead = WorkerProcess("engine of teacher", 1, "host", "ab" * 28, (), None)
    words = asyncio.run(recorder(dead, reported))
    assert words.startswith(reported or cause)
    assert deaths(LocalStorage(str(tmp_path))).latest[0].cause.startswith(reported or cause)
    # The event loop of the coordinator does not wait for the storage.
    assert threads
    assert threading.main_thread().name not in threads


def test_an_engine_whose_process_dies_at_its_start_is_given_up() -> None:
    recorder = Recorder()

    async def work() -> list[str]:
        state = coordinator(recorder)
        return [await state.begin_start("actor", process(pid)) for pid in (1, 2, 3, 4)]

    *first, last = asyncio.run(work())
    assert first == ["", "", ""]
    assert last == "the engine of teacher died 3 times, the last time with: no error of process 3"


def test_starts_that_succeed_are_forgotten() -> None:
    recorder = Recorder()

    async def work() -> None:
        state = coordinator(recorder)
        for pid in range(9):
            assert await state.begin_start("actor", process(pid)) == ""
            await state.end_start("actor")

    asyncio.run(work())
    assert recorder.recorded == []


def test_a_task_that_dies_while_it_reads_a_shard_is_given_up() -> None:
    async def work() -> list[str]:
        state = coordinator(Recorder(), max_engine_deaths=1)
        await state.add_shard("a")
        return [await state.begin_fetch("a", process(pid)) for pid in (1, 2)]

    assert asyncio.run(work())[1].endswith("died 1 times, the last time with: no error of process 1")


def test_the_worker_that_died_is_named_before_those_that_lost_it() -> None:
    recorder = Recorder()

    async def train() -> tuple[int, str]:
        failures = TrainingFailures(recorder)
        for rank in range(3):
            await failures.begin(rank, process(rank))
        lost = "RuntimeError: [gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:20448"
        await failures.end_attempt({0: lost, 1: None, 2: lost})
        return await failures.last_failure()

    assert asyncio.run(train()) == (1, "training worker 1: no error of process 1")
    assert recorder.recorded == [(1, None)]


def test_attempts_of_a_training_are_counted() -> None:
    async def train() -> tuple[int, str]:
        failures = TrainingFailures(Recorder())
        for pid in (7, 8):
            await failures.begin(0, process(pid))
            await failures.end_attempt({0: "torch.OutOfMemoryError: CUDA out of memory."})
        return await failures.last_failure()

    assert asyncio.run(train()) == (
        2,
        "training worker 0: torch.OutOfMemoryError: CUDA out of memory. of process 8",
    )
