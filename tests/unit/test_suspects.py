"""What is known about images that kill engines, in the files of a run."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from random import Random

import pytest

from mpa_ray.config import LimitsConfig
from mpa_ray.errors import CannotWrite
from mpa_ray.observability.worker_process import WorkerProcess
from mpa_ray.pipeline.coordination.attempts import Attempts
from mpa_ray.pipeline.coordination.coordinator import PassCoordinator
from mpa_ray.records import Annotation
from mpa_ray.run.dataset import ShardedDataset
from mpa_ray.run.joined_datasets import DatasetsOfModels, JoinedDatasets
from mpa_ray.run.sealed_json import parse_sealed, sealed
from mpa_ray.run.suspects import Suspects
from mpa_ray.stages.visits import Attempt
from mpa_ray.storage.local import LocalStorage

SHARD = "000003"
KNOWN = Suspects(
    (("a", "b"), ("c",)), frozenset("de"), {"c": 1, "f": 2}, has_survivor=True, engine="A", last_error="no"
)
IMAGES = [*"abcdefgh"]


def process(pid: int) -> WorkerProcess:
    return WorkerProcess("engine of teacher", pid, "node", "", (), None)


async def record(process: WorkerProcess, error: str | None) -> str:
    return error or f"no error of process {process.pid}"


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ShardedDataset[Annotation]:
    # Searches write the file often, and no test cuts the power.
    monkeypatch.setattr("mpa_ray.storage.local.os.fsync", lambda _: None)
    return ShardedDataset(LocalStorage(str(tmp_path)), "annotations", Annotation)


def coordinator(
    dataset: ShardedDataset[Annotation], engine: str = "A", limits: LimitsConfig | None = None
) -> PassCoordinator:
    """The coordinator of a new driver."""
    return PassCoordinator(limits or LimitsConfig(), 100, record, suspects_files=dataset, engine=engine)


@dataclass
class Driver:
    """A driver that visits a shard in one engine after the other; each engine dies on the same images."""

    dataset: ShardedDataset[Annotation]
    poison: set[str]
    engine: str = "A"
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    num_deaths: int = 0
    visited: list[str] = field(default_factory=list)
    """The images that were in an engine, with repetitions."""

    def run(self, images: Sequence[str]) -> Attempt:
        """Visit the shard. Returns the last attempt."""
        return asyncio.run(self._run(images))

    async def _run(self, images: Sequence[str]) -> Attempt:
        state = coordinator(self.dataset, self.engine, self.limits)
        for pid in count(1):
            attempt = await state.begin_attempt(SHARD, process(pid), images)
            if attempt.given_up is not None or await self._visit(state, process(pid), attempt, images):
                await state.settle()
                return attempt
        raise AssertionError

    async def _visit(
        self, state: PassCoordinator, process: WorkerProcess, attempt: Attempt, images: Sequence[str]
    ) -> bool:
        """Whether the engine survives."""
        if attempt.needs_probe:
            await state.begin_probe(process)
            await state.end_probe(process, is_answered=True)
        group = [name for name in images if name not in attempt.suspects and name not in attempt.quarantined]
        while True:
            self.visited += group
            if self.poison & set(group):
                self.num_deaths += 1
                await state.report_death(process, {SHARD: group}, "CUDA out of memory")
                await state.settle()
                return False
            group = list(await state.next_group(SHARD, process) or ())
            if not group:
                await state.end_shard(SHARD)
                return True


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


def content(**values: object) -> bytes:
    """The content of a file that is correct apart from some values."""
    return json.dumps(sealed({**json.loads(KNOWN.to_json()), **values})).encode()


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"[]", b"{", b'{"groups": 1}', b"\xff", json.dumps({"groups": []}).encode()),
        *(b"[" * 200_000, b"9" * 10_000, content(deep=json.loads("[" * 200 + "]" * 200))),
        *(content(groups=["ab"]), content(groups=[["a"], ["a", "b"]]), content(groups=[[]]), content(groups=[[["a"]]])),
        *(content(cleared="abc"), content(cleared=[1]), content(engine=1), content(last_error=None)),
        *(content(num_kills={"a": 1.5}), content(num_kills={"a": float("inf")}), content(num_kills={"a": -1})),
        *(content(num_kills={"a": None}), content(num_kills=[])),
        KNOWN.to_json().replace(b"true", b"false"),
    ],
)
def test_a_damaged_file_is_ignored_and_replaced(dataset: ShardedDataset[Annotation], content: bytes) -> None:
    file = dataset.suspects_file(SHARD, 0)
    dataset.storage.write(file.path, content)
    assert file.read() == Suspects()
    file.write(KNOWN)
    assert file.read() == KNOWN


def test_a_file_of_an_earlier_version_names_no_engine() -> None:
    values = parse_sealed(KNOWN.to_json())
    del values["engine"], values["last_error"]
    assert Suspects.from_json(json.dumps(values).encode()) == replace(KNOWN, engine="", last_error="")


def test_another_engine_begins_without_blame_and_visits_old_suspects_last() -> None:
    assert KNOWN.for_engine("A") is KNOWN
    assert KNOWN.for_engine("B") == Suspects((("a", "b"), ("c",), ("f",)), engine="B")


def test_a_driver_with_another_engine_replaces_the_file(dataset: ShardedDataset[Annotation]) -> None:
    file, other = dataset.suspects_file(SHARD, 0), Suspects((("a",),), num_kills={"a": 1}, engine="B")
    file.write(KNOWN)
    file.write(other)
    assert file.read() == other


MANY = [f"{number:03d}.png" for number in range(256)]
POISON = set(MANY[::14][:17])


def test_an_engine_that_was_fixed_continues_the_run(dataset: ShardedDataset[Annotation]) -> None:
    given_up = Driver(dataset, POISON, "bad").run(MANY)
    assert "17 images of shard 000003 killed engines, more than limits.max_poison_images = 16" in str(given_up.given_up)
    fixed = Driver(dataset, set(), "fixed")
    attempt = fixed.run(MANY)
    assert (attempt.given_up, attempt.quarantined, fixed.num_deaths) == (None, {}, 0)
    assert sorted(fixed.visited) == MANY
    assert attempt.suspects >= POISON
    assert dataset.list_suspects() == set()


def test_a_changed_engine_counts_its_kills_anew(dataset: ShardedDataset[Annotation]) -> None:
    """Even with a higher limit, images that killed only another engine do not become failed rows."""
    Driver(dataset, POISON, "bad").run(MANY)
    still_bad = min(POISON)
    better = Driver(dataset, {still_bad}, "better", LimitsConfig(max_poison_images=20))
    attempt = better.run(MANY)
    assert (attempt.given_up, attempt.quarantined) == (None, {still_bad: 2})
    assert better.num_deaths == 2


def test_the_same_engine_and_limit_end_at_once_with_the_true_cause(dataset: ShardedDataset[Annotation]) -> None:
    first = Driver(dataset, POISON).run(MANY)
    for _ in range(2):
        again = Driver(dataset, set())
        attempt = again.run(MANY)
        assert (again.visited, attempt.number) == ([], 1)
        assert attempt.given_up == first.given_up
        assert str(attempt.given_up).endswith("the latest cause: CUDA out of memory")
        assert attempt.remedy is not None
        assert "The same command would fail again" in attempt.remedy
        for change in ("the settings of the engine", "raise limits.max_poison_images", "exclude them"):
            assert change in attempt.remedy
    higher = Driver(dataset, POISON, limits=LimitsConfig(max_poison_images=17))
    attempt = higher.run(MANY)
    assert (attempt.given_up, set(attempt.quarantined), higher.num_deaths) == (None, POISON, 0)


def test_the_last_cause_is_that_of_a_death_and_not_of_an_engine_that_was_taken_away(
    dataset: ShardedDataset[Annotation],
) -> None:
    async def record_end(process: WorkerProcess, error: str | None) -> str:  # noqa: ARG001
        return f"the end of process {process.pid}"

    async def is_taken_away(process: WorkerProcess) -> bool:
        return process.pid == 2

    async def work() -> str | None:
        limits = LimitsConfig(max_image_deaths=1, max_poison_images=0)
        state = PassCoordinator(limits, 100, record_end, is_taken_away, dataset)
        await state.begin_attempt(SHARD, process(1), IMAGES)
        await state.report_death(process(1), {SHARD: ["a"]}, "out of memory")
        for pid in (2, 3):
            await state.begin_attempt(SHARD, process(pid), IMAGES)
            assert await state.next_group(SHARD, process(pid)) == ("a",)
        await state.settle()
        return (await state.begin_attempt(SHARD, process(4), IMAGES)).given_up

    assert str(asyncio.run(work())).endswith("the latest cause: the end of process 3")


def test_a_process_that_is_assumed_to_be_dead_changes_nothing(dataset: ShardedDataset[Annotation]) -> None:
    async def work() -> None:
        state = coordinator(dataset)
        for pid in (1, 2):
            await state.begin_attempt(SHARD, process(pid), IMAGES)
        group = await state.next_group(SHARD, process(2))
        # Late messages of the first process: it must not clear the group.
        assert await state.next_group(SHARD, process(1)) is None
        await state.report_visited(SHARD, process(1))
        # The second process dies silently.
        attempt = await state.begin_attempt(SHARD, process(3), IMAGES)
        assert attempt.suspects >= set(group or "?")
        assert await state.next_group(SHARD, process(2)) is None
        assert await state.next_group("another", process(3)) is None

    asyncio.run(work())
    assert dataset.suspects_file(SHARD, 0).read().cleared == frozenset()


def test_a_late_answer_to_the_probe_does_not_count() -> None:
    attempts = Attempts(LimitsConfig(), Random(0))
    for engine in (1, 2, 3):
        given_up = attempts.begin("a", engine, IMAGES).given_up
        attempts.begin_probe(engine)
        attempts.bury(engine, None, "a death", was_taken_away=False)
        attempts.end_probe(engine)
    assert given_up is not None


def test_a_probe_without_an_answer_is_no_proof() -> None:
    attempts = Attempts(LimitsConfig(), Random(0))
    for engine in (1, 2, 3):
        assert attempts.begin("a", engine, IMAGES).given_up is None
        attempts.begin_probe(engine)
        attempts.end_probe(engine, is_answered=False)
        # The engine dies later, without the picture.
        attempts.bury(engine, {"a": ["a"]}, "a death", was_taken_away=False)
    assert attempts.begin("a", 4, IMAGES).given_up is None


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
            while await state.next_group(SHARD, process(pid)) != ("b",):
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
        await state.report_visited(SHARD, process(4))
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
            await state.report_visited(shard, process(1))
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

    assert "are not the cause: no error of process 3" in str(asyncio.run(work()))
    assert dataset.list_suspects() == set()
