"""The GPU measurements that need vLLM, as dry runs on its CPU build; one engine each."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.gpu.check import MODULES, check_imports
from benchmarks.gpu.engine_ladder import Rate, steady_rate
from tests.gpu_benchmarks import assert_complete, dry_run

NUM_IMAGES, NUM_IMAGE_TOKENS = 24, 16
PASSES = ("first-pass", "second-pass")
VISITS = ("visit-raw", "visit-thread", "visit-processes", "visit-rendered")


@pytest.mark.timeout(400)
def test_every_way_to_use_an_engine_is_measured_without_ray(tmp_path: Path) -> None:
    run = dry_run("engine_ladder", tmp_path, without=("ray",))
    assert_complete(run, [*PASSES, "two-passes", *VISITS])
    assert run.summary["engine_start_s"] > 0
    assert all(row["images_per_s"] > 0 for row in run.rows.values())
    for name in PASSES:
        assert run.rows[name]["request_uncached_image_tokens"] >= NUM_IMAGES * NUM_IMAGE_TOKENS
    for name in VISITS:
        row = run.rows[name]
        # No row finds the images of an earlier one in a cache, and every second question finds its image.
        assert row["first_uncached_image_tokens"] >= NUM_IMAGES * NUM_IMAGE_TOKENS
        assert row["second_uncached_image_tokens"] == 0
        assert row["second_cached_share"] > 0.5
        assert (row["first_mean_reply_tokens"], row["second_mean_reply_tokens"]) == (32, 8)


@pytest.mark.timeout(400)
def test_the_whole_flow_is_measured(tmp_path: Path) -> None:
    run = dry_run("whole_flow", tmp_path)
    assert_complete(run, ["visit"])
    row = run.rows["visit"]
    assert len(row["teacher_images_per_s"]) == 1
    assert row["teacher_images_per_s"][0] > 0
    assert row["num_uncached_image_tokens"] == 0
    assert row["pairs_per_image"] == 1


def test_every_module_that_check_names_can_be_imported() -> None:
    assert "failed" not in check_imports(MODULES["ray"] + MODULES["vllm"])


def test_a_steady_rate_leaves_out_the_filling_and_the_emptying() -> None:
    filling, full, emptying = [10.0, 10.0, 10.0], [11.0, 12.0, 13.0, 14.0], [30.0, 60.0]
    assert steady_rate([*emptying, *filling, *full], num_in_flight=2) == Rate(6 / 20, 10.0, 30.0)
    assert steady_rate(full, num_in_flight=2) == Rate(1.0, 11.0, 14.0)
