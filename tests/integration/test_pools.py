"""Pools of engines: their resources are free before the next phase needs them, also if a phase fails."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import ray

from mpa_ray.config import RunConfig
from mpa_ray.errors import RunError
from mpa_ray.phases.annotate import annotate
from mpa_ray.phases.context import RunContext
from mpa_ray.phases.identify import identify
from mpa_ray.phases.index import index
from mpa_ray.run.audit import audit
from mpa_ray.run.run import Run
from tests.conftest import scripted_tree

pytestmark = pytest.mark.usefixtures("local_ray")


def large_pools(images: Path, run_dir: Path, **teacher: Any) -> RunConfig:
    """Teacher and student each need more than half of the CPUs."""
    tree = scripted_tree(images, run_dir, **teacher)
    for model in (tree["teacher"], tree["students"][0]):
        model["cpus_per_replica"] = ray.cluster_resources()["CPU"] - 0.75
    return RunConfig.model_validate(tree)


def wait_until_all_is_free() -> None:
    deadline = time.monotonic() + 20
    while ray.available_resources().get("CPU") != ray.cluster_resources()["CPU"]:
        assert time.monotonic() < deadline, ray.available_resources()
        time.sleep(0.1)


def test_a_phase_gets_the_resources_of_the_previous_one(images: Path, tmp_path: Path) -> None:
    config = large_pools(images, tmp_path / "run")
    index(RunContext.open(config))
    annotate(RunContext.open(config))
    wait_until_all_is_free()
    identify(RunContext.open(config))
    wait_until_all_is_free()
    assert audit(Run.open(config.run_dir)).problems == []


def test_a_phase_that_fails_leaves_no_engine_behind(images: Path, tmp_path: Path) -> None:
    failing = large_pools(images, tmp_path / "run", fail_on=[f"{n:03d}.png" for n in range(60)])
    failing = failing.model_copy(update={"limits": failing.limits.model_copy(update={"min_images": 8})})
    index(RunContext.open(failing))
    # A campaign keeps its students' errors: what an error refers to must not keep the engines.
    with pytest.raises(RunError, match="images failed") as kept:
        annotate(RunContext.open(failing))
    wait_until_all_is_free()
    assert kept.tb is not None


def test_an_engine_that_cannot_start_is_reported_in_a_sentence(images: Path, tmp_path: Path) -> None:
    tree = scripted_tree(images, tmp_path / "run")
    engine = {"kind": "vllm", "engine_args": {"no_such_argument": 1}}
    tree["teacher"] = {"model": "bundled:demo/models/teacher", "engine": engine}
    config = RunConfig.model_validate(tree)
    # The check of the settings would refuse the argument.
    index(RunContext.from_checked(config))
    with pytest.raises(
        RunError, match=r"annotate:teacher: the engine of .* cannot start: TypeError: .*no_such_argument"
    ):
        annotate(RunContext.from_checked(config))
    wait_until_all_is_free()
