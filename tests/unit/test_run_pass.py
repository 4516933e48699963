"""A pass from the driver's side: when it is admitted, and who is told of its shards."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mpa_ray.config import LimitsConfig
from mpa_ray.observability.usage import Usage
from mpa_ray.pipeline.run_pass import Outstanding, Throughput, run_missing
from mpa_ray.run.run import Run


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What happened, in order; the graph of Ray Data is replaced by a loop."""
    happened: list[str] = []

    def run_pass(_: Any, shards: list[str], __: Any) -> Iterator[Any]:
        for shard in shards:
            happened.append(f"run {shard}")
            yield types.SimpleNamespace(shard=shard, num_images=1, visit_s=0.0, effort=Usage(), failed={})

    flow = types.SimpleNamespace(start_ray=lambda: None, run_pass=run_pass)
    monkeypatch.setitem(sys.modules, "mpa_ray.pipeline.graph", flow)  # type: ignore[arg-type]
    monkeypatch.setattr("mpa_ray.pipeline.graph", flow, raising=False)
    return happened


def made(folder: Path, told: list[str], missing: list[str]) -> None:
    @contextmanager
    def admission() -> Iterator[None]:
        told.append("admitted")
        yield
        told.append("left")

    work = types.SimpleNamespace(num_models=1, names={})
    run_missing(
        Run.open(str(folder)),
        "annotate",
        LimitsConfig(),
        lambda _: work,
        Outstanding(missing, ["a", "b"], 4, 2),
        admission,
        lambda shard: told.append(f"tell {shard}"),
    )  # type: ignore[arg-type, return-value]


def test_what_was_done_before_is_told_once_the_pass_has_its_place(tmp_path: Path, told: list[str]) -> None:
    """A follower that heard of it earlier could take the place that its own leader needs, and wait for it for ever."""
    made(tmp_path, told, ["c", "d"])
    assert told == ["admitted", "tell a", "tell b", "run c", "tell c", "run d", "tell d", "left"]


def test_a_pass_that_is_done_tells_its_shards_and_takes_no_place(tmp_path: Path, told: list[str]) -> None:
    made(tmp_path, told, [])
    assert told == ["tell a", "tell b"]


def test_only_what_engines_worked_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards one beside the other count once, and the wait for shards of an earlier step does not."""
    throughput = Throughput()
    for now, visit_s in ((10.0, 4.0), (12.0, 4.0), (30.0, 5.0), (31.0, 2.0), (40.0, 1.0), (41.0, 20.0)):
        monkeypatch.setattr("time.monotonic", lambda now=now: now)
        throughput.count(8, visit_s, Usage())
    # 6-12, 21-41.
    assert throughput.record()["working_s"] == 26.0
    assert throughput.record()["num_images"] == 48


def test_models_asked_together_each_count_for_the_rate() -> None:
    throughput = Throughput(num_models=3)
    throughput.count(8, 1.0, Usage())
    assert throughput.record()["num_images"] == 8
    assert throughput.record()["num_images_by_models"] == 24
