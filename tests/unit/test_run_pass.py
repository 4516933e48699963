"""A pass as the driver sees it: when it is admitted, when its shards are announced, and its throughput."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mpa_ray.config import LimitsConfig, ModelConfig, ObjectStoreConfig, ReadingConfig
from mpa_ray.corpus.read import Reader
from mpa_ray.errors import CannotWrite, ConfigError, RunError
from mpa_ray.observability.usage import Usage
from mpa_ray.pipeline.pass_spec import Pass, ShardDone
from mpa_ray.pipeline.run_pass import Outstanding, Throughput, error_recorded, recorded, run_missing
from mpa_ray.run.phase_record import PhaseKey, phase_record
from mpa_ray.run.run import Run
from mpa_ray.storage.local import LocalStorage


def run_outstanding(
    folder: Path, missing: list[str], num_images: int = 1, num_failed: int = 0, events: list[str] | None = None
) -> list[str]:
    """The events, in order, of a pass over four shards of which two are committed; a loop replaces Ray Data."""
    events = events if events is not None else []
    run = Run.open(str(folder))

    @contextmanager
    def admission() -> Iterator[None]:
        events.append("admitted")
        try:
            yield
        finally:
            events.append("left")

    def stream(_: Pass[Any], shards: Iterable[str], __: Sequence[str]) -> Generator[ShardDone, None, None]:
        try:
            for shard in shards:
                events.append(f"run {shard}")
                yield ShardDone(shard, num_images=num_images, failed=Counter(decode=num_failed))
        finally:
            events.append("engines ended")

    work = Pass(
        key=PhaseKey("annotate"),
        models=("teacher",),
        source=run.corpus,
        target=run.annotations,
        model=ModelConfig(model="unused"),
        branch="teacher",
        make_stage=lambda _: pytest.fail("no engine starts"),
        reader=Reader(ObjectStoreConfig()),
        reading=ReadingConfig(),
        limits=LimitsConfig(),
    )
    outstanding = Outstanding(missing, ["a", "b"], 4, 2)
    run_missing(run, work, outstanding, admission, lambda shard: events.append(f"announce {shard}"), stream)
    return events


def test_committed_shards_are_announced_once_the_pass_is_admitted(tmp_path: Path) -> None:
    """A follower that was notified earlier could take the resources that the announcing pass needs, and wait for it
    forever."""
    events = run_outstanding(tmp_path, ["c", "d"])
    announced = ["announce a", "announce b", "run c", "announce c", "run d", "announce d"]
    assert events == ["admitted", *announced, "engines ended", "left"]


def test_a_finished_pass_announces_its_shards_without_admission(tmp_path: Path) -> None:
    assert run_outstanding(tmp_path, []) == ["announce a", "announce b"]


def test_engines_of_a_failed_pass_end_before_its_place_is_free(tmp_path: Path) -> None:
    """This also holds while the error is kept, as a campaign keeps it."""
    events: list[str] = []
    with pytest.raises(RunError, match="900 of 1000 images failed") as kept:
        run_outstanding(tmp_path, ["c", "d"], num_images=1000, num_failed=900, events=events)
    assert events == ["admitted", "announce a", "announce b", "run c", "engines ended", "left"]
    assert kept.tb is not None


def test_throughput_counts_only_the_time_in_which_engines_work() -> None:
    """Shards that are in work at the same time count once, and waits for shards do not count."""
    ends = [10.0, 12.0, 30.0, 31.0, 40.0, 41.0]
    clock = iter(ends)
    throughput = Throughput(clock=lambda: next(clock))
    for visit_s in (4.0, 4.0, 5.0, 2.0, 1.0, 20.0):
        throughput.count(8, visit_s, Usage())
    # From 6 to 12 and from 21 to 41.
    assert throughput.totals().working_s == 26.0
    assert throughput.totals().num_images == 48


def test_throughput_counts_an_image_once_for_each_model_that_is_asked() -> None:
    throughput = Throughput(num_models=3)
    throughput.count(8, 1.0, Usage())
    assert throughput.totals().num_images == 8
    assert throughput.totals().num_images_by_models == 24


def test_the_error_of_an_attempt_is_recorded_and_the_next_attempt_clears_it(tmp_path: Path) -> None:
    key, run = PhaseKey("annotate"), Run.open(str(tmp_path))
    for error in (RunError("300 of 400 images failed."), MemoryError("7 GiB"), KeyboardInterrupt()):
        with pytest.raises(type(error)), recorded(run, key):
            raise error
        words = {RunError: "300 of 400 images failed.", MemoryError: "MemoryError: 7 GiB"}
        assert recorded_error(run, key) == words.get(type(error), "interrupted")
    with recorded(run, key):
        pass
    assert recorded_error(run, key) == ""
    with pytest.raises(ConfigError), error_recorded(run, key):
        raise ConfigError("s3", "s3://me:pass@host", "is odd.", "Change it.")
    assert recorded_error(run, key) == "s3 = 's3://***@host': is odd. Change it."


def recorded_error(run: Run, key: PhaseKey) -> str:
    record = phase_record(run, key)
    assert record is not None
    return record.error


def test_a_full_disk_has_room_for_the_record_of_the_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key, run = PhaseKey("annotate"), Run.open(str(tmp_path))
    create = LocalStorage.create

    def create_if_free(storage: LocalStorage, path: str, content: bytes) -> bool:
        if (tmp_path / ".writable").exists():
            raise CannotWrite(path, "No space left on device")
        return create(storage, path, content)

    monkeypatch.setattr(LocalStorage, "create", create_if_free)
    assert (tmp_path / ".writable").stat().st_size >= 2**16
    with pytest.raises(CannotWrite, match="rows"), recorded(run, key):
        raise CannotWrite("rows", "No space left on device")
    assert recorded_error(run, key).startswith("rows cannot be written (No space left on device)")
