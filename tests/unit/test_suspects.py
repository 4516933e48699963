"""What is known of images that kill engines, in the files of a run."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from mpa_ray.config import LimitsConfig
from mpa_ray.errors import CannotWrite
from mpa_ray.observability.worker_process import WorkerProcess
from mpa_ray.pipeline.coordination.coordinator import PassCoordinator
from mpa_ray.records import Annotation
from mpa_ray.run.dataset import ShardedDataset
from mpa_ray.run.joined_datasets import DatasetsOfModels, JoinedDatasets
from mpa_ray.run.suspects import Suspects
from mpa_ray.storage.local import LocalStorage

SHARD = "000003"
KNOWN = Suspects((("a", "b"), ("c",)), frozenset("de"), {"c": 1, "f": 2}, has_survivor=True)
IMAGES = [*"abcdefgh"]


def process(pid: int) -> WorkerProcess:
    return WorkerProcess("engine of teacher", pid, "node", "", (), None)


async def record(process: WorkerProcess, error: str | None) -> str:
    return error or f"no error of process {process.pid}"


@pytest.fixture
def dataset(tmp_path: Path) -> ShardedDataset[Annotation]:
    return ShardedDataset(LocalStorage(str(tmp_path)), "annotations", Annotation)


def coordinator(dataset: ShardedDataset[Annotation]) -> PassCoordinator:
    """The coordinator of a new driver."""
    return PassCoordinator(LimitsConfig(), 100, record, suspects_files=dataset)


def test_a_file_holds_all_that_is_known(dataset: ShardedDataset[Annotation]) -> None:
    file = dataset.suspects_file(SHARD, 0)
    assert (file.read(), dataset.list_suspects()) == (Suspects(), set())
    file.write(KNOWN)
    assert file.read() == KNOWN
    assert dataset.list_suspects() == {f"annotations/suspects/{SHARD}.0.json"}
    assert dataset.suspects_file(SHARD, 1).read() == Suspects()
    file.delete()
    file.delete()
    assert file.read() == Suspects()


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"groups": 1}', b"\xff", json.dumps({"groups": []}).encode()])
def test_a_damaged_file_is_ignored_and_replaced(dataset: ShardedDataset[Annotation], content: bytes) -> None:
    file = dataset.suspects_file(SHARD, 0)
    dataset.storage.write(file.path, content)
    assert file.read() == Suspects()
    file.write(KNOWN)
    assert file.read() == KNOWN


def test_two_drivers_keep_what_the_other_has_found_out(dataset: ShardedDataset[Annotation]) -> None:
    file = dataset.suspects_file(SHARD, 0)
    file.write(Suspects((("a", "b"),), frozenset("c"), {"x": 2, "y": 1}, has_survivor=True))
    file.write(Suspects((("c", "d"),), frozenset("e"), {"y": 2, "z": 1}))
    assert file.read() == Suspects((("c", "d"),), frozenset("e"), {"x": 2, "y": 2, "z": 1}, has_survivor=True)


def test_datasets_of_a_pass_keep_the_file_in_one_place(dataset: ShardedDataset[Annotation]) -> None:
    other = ShardedDataset(dataset.storage, "other", Annotation)
    joined = JoinedDatasets({"one": dataset, "two": other})
    assert joined.suspects_file("two/000001", 1).path == "other/suspects/000001.1.json"
    joined.suspects_file("two/000001", 1).write(KNOWN)
    of_models = DatasetsOfModels({"big": joined, "small": JoinedDatasets({"one": dataset})})
    shared = of_models.suspects_file("two/000001", 1)
    assert (shared.path, shared.read()) == ("other/suspects/000001.1.shared.json", Suspects())
    shared.write(Suspects())
    assert of_models.list_suspects() == {"other/suspects/000001.1.json", shared.path}


def test_the_next_driver_knows_what_this_one_has_found_out(dataset: ShardedDataset[Annotation]) -> None:
    async def first_driver() -> None:
        state = coordinator(dataset)
        await state.begin_attempt(SHARD, process(1), IMAGES)
        await state.report_death(process(1), {SHARD: ["a", "b"]}, "out of memory")
        await state.settle()
        for pid in (2, 3):
            attempt = await state.begin_attempt(SHARD, process(pid), IMAGES)
            assert (attempt.suspects - {"a"}, attempt.needs_probe, attempt.quarantined) == ({"b"}, True, {})
            while await state.next_group(SHARD) != ("b",):
                pass
        # Its death is noticed, but the driver is killed before another engine begins.
        await state.report_death(process(3), {SHARD: ["b"]}, "out of memory")
        await state.settle()

    async def second_driver() -> None:
        state = coordinator(dataset)
        attempt = await state.begin_attempt(SHARD, process(4), IMAGES)
        assert (attempt.number, attempt.quarantined) == (1, {"b": 2})
        # Another engine may have cleared it already.
        assert attempt.suspects <= {"a"}
        await state.report_visited(SHARD)
        await state.end_shard(SHARD)
        await state.settle()

    asyncio.run(first_driver())
    asyncio.run(second_driver())
    assert dataset.list_suspects() == set()


def test_a_pass_without_deaths_writes_nothing_and_lists_once(
    dataset: ShardedDataset[Annotation], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    for name in ("read", "write", "delete", "exists", "create", "list"):
        method = getattr(LocalStorage, name)
        monkeypatch.setattr(LocalStorage, name, lambda *args, n=name, m=method: (calls.append(n), m(*args))[1])

    async def work() -> None:
        state = coordinator(dataset)
        for shard in ("000000", "000001"):
            await state.begin_attempt(shard, process(1), IMAGES)
            await state.report_visited(shard)
            await state.end_shard(shard)
        await state.settle()

    asyncio.run(work())
    assert calls == ["list"]


def test_a_shard_that_is_made_again_forgets_what_was_known(dataset: ShardedDataset[Annotation]) -> None:
    dataset.suspects_file(SHARD, 0).write(KNOWN)

    async def work() -> tuple[object, ...]:
        attempt = await coordinator(dataset).begin_attempt(SHARD, process(1), IMAGES, generation=1)
        return attempt.suspects, attempt.quarantined

    assert asyncio.run(work()) == (frozenset(), {})


def test_a_disk_that_is_full_does_not_end_the_search(
    dataset: ShardedDataset[Annotation], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(storage: LocalStorage, path: str, content: bytes) -> None:  # noqa: ARG001
        raise CannotWrite(path, "No space left on device")

    monkeypatch.setattr(LocalStorage, "write", full)

    async def work() -> frozenset[str]:
        state = coordinator(dataset)
        await state.begin_attempt(SHARD, process(1), IMAGES)
        await state.report_death(process(1), {SHARD: ["a", "b"]}, "out of memory")
        return (await state.begin_attempt(SHARD, process(2), IMAGES)).suspects

    assert asyncio.run(work()) == {"a", "b"}


def test_a_store_that_cannot_be_listed_does_not_end_the_pass(
    dataset: ShardedDataset[Annotation], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(storage: LocalStorage, folder: str) -> None:  # noqa: ARG001
        raise ConnectionError("no route to host")

    monkeypatch.setattr(LocalStorage, "list", unreachable)
    attempt = asyncio.run(coordinator(dataset).begin_attempt(SHARD, process(1), IMAGES))
    assert (attempt.number, attempt.given_up) == (1, None)


def test_an_engine_that_is_at_fault_leaves_nothing_in_the_run(dataset: ShardedDataset[Annotation]) -> None:
    async def work() -> str | None:
        state = coordinator(dataset)
        await state.begin_attempt(SHARD, process(1), IMAGES)
        for pid in (2, 3, 4):
            attempt = await state.begin_attempt(SHARD, process(pid), IMAGES)
            if attempt.given_up is None:
                assert attempt.needs_probe
                await state.begin_probe(process(pid))
        await state.settle()
        assert attempt.is_engine_fault
        return attempt.given_up

    assert "no image is to blame: no error of process 3" in str(asyncio.run(work()))
    assert dataset.list_suspects() == set()
