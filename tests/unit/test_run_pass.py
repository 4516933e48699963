"""A pass from the driver's side: when it is admitted, and when its shards are announced."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mpa_ray.config import LimitsConfig, ModelConfig, ObjectStoreConfig, ReadingConfig
from mpa_ray.corpus.read import Reader
from mpa_ray.observability.usage import Usage
from mpa_ray.pipeline.pass_spec import Pass, ShardDone
from mpa_ray.pipeline.run_pass import Outstanding, Throughput, run_missing
from mpa_ray.run.phase_record import PhaseKey
from mpa_ray.run.run import Run


def run_outstanding(folder: Path, missing: list[str]) -> list[str]:
    """What happens, in order, in a pass over four shards of which two are committed; a loop stands for Ray Data."""
    events: list[str] = []
    run = Run.open(str(folder))

    @contextmanager
    def admission() -> Iterator[None]:
        events.append("admitted")
        yield
        events.append("left")

    def stream(_: Pass[Any], shards: Iterable[str], __: Sequence[str]) -> Iterator[ShardDone]:
        for shard in shards:
            events.append(f"run {shard}")
            yield ShardDone(shard, num_images=1)

    work = Pass(
        key=PhaseKey("annotate"),
        models=("teacher",),
        source=run.corpus,
        target=run.annotations,
        model=ModelConfig(model="unused"),
        make_stage=lambda _: pytest.fail("no engine starts"),
        reader=Reader(ObjectStoreConfig()),
        reading=ReadingConfig(),
        limits=LimitsConfig(),
    )
    outstanding = Outstanding(missing, ["a", "b"], 4, 2)
    run_missing(run, work, outstanding, admission, lambda shard: events.append(f"announce {shard}"), stream)
    return events


def test_committed_shards_are_announced_once_the_pass_is_admitted(tmp_path: Path) -> None:
    """A follower that heard earlier could take the place that its own leader needs, and wait for it for ever."""
    events = run_outstanding(tmp_path, ["c", "d"])
    assert events == ["admitted", "announce a", "announce b", "run c", "announce c", "run d", "announce d", "left"]


def test_a_pass_that_is_done_announces_its_shards_and_takes_no_place(tmp_path: Path) -> None:
    assert run_outstanding(tmp_path, []) == ["announce a", "announce b"]


def test_only_what_engines_worked_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards one beside the other count once, and the wait for shards of an earlier phase does not."""
    throughput = Throughput()
    for now, visit_s in ((10.0, 4.0), (12.0, 4.0), (30.0, 5.0), (31.0, 2.0), (40.0, 1.0), (41.0, 20.0)):
        monkeypatch.setattr("time.monotonic", lambda now=now: now)
        throughput.count(8, visit_s, Usage())
    # 6-12, 21-41.
    assert throughput.totals().working_s == 26.0
    assert throughput.totals().num_images == 48


def test_models_asked_together_each_count_for_the_rate() -> None:
    throughput = Throughput(num_models=3)
    throughput.count(8, 1.0, Usage())
    assert throughput.totals().num_images == 8
    assert throughput.totals().num_images_by_models == 24
