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
from mpa_ray.passes import Outstanding, run_missing
from mpa_ray.store.run import Run


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What happened, in order; the graph of Ray Data is replaced by a loop."""
    happened: list[str] = []

    def run_pass(_: Any, shards: list[str], __: Any) -> Iterator[Any]:
        for shard in shards:
            happened.append(f"run {shard}")
            yield types.SimpleNamespace(shard=shard, num_images=1, visit_s=0.0, effort=Effort(), failed={})

    from mpa_ray.effort import Effort

    flow = types.SimpleNamespace(start_ray=lambda: None, run_pass=run_pass)
    monkeypatch.setitem(sys.modules, "mpa_ray.flow", flow)  # type: ignore[arg-type]
    monkeypatch.setattr("mpa_ray.flow", flow, raising=False)
    return happened


def made(folder: Path, told: list[str], missing: list[str]) -> None:
    @contextmanager
    def admission() -> Iterator[None]:
        told.append("admitted")
        yield
        told.append("left")

    run_missing(Run.open(str(folder)), "annotate", LimitsConfig(), lambda _: None,
                Outstanding(missing, ["a", "b"], 4, 2), admission, lambda shard: told.append(f"tell {shard}"))  # type: ignore[arg-type, return-value]  # fmt: skip


def test_what_was_done_before_is_told_once_the_pass_has_its_place(tmp_path: Path, told: list[str]) -> None:
    """A follower that heard of it earlier could take the place that its own leader needs, and wait for it for ever."""
    made(tmp_path, told, ["c", "d"])
    assert told == ["admitted", "tell a", "tell b", "run c", "tell c", "run d", "tell d", "left"]


def test_a_pass_that_is_done_tells_its_shards_and_takes_no_place(tmp_path: Path, told: list[str]) -> None:
    made(tmp_path, told, [])
    assert told == ["tell a", "tell b"]
