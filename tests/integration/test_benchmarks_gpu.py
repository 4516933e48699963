"""The GPU measurements of training, as dry runs."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from tests.gpu_benchmarks import assert_complete, dry_run

LORA_ROWS, FULL_ROWS = ("plain-lora", "ours-lora"), ("plain-full", "ours-full")


@pytest.mark.timeout(900)
def test_leveling_is_measured_against_a_plain_trainer_without_vllm(tmp_path: Path) -> None:
    rows = [*LORA_ROWS, *FULL_ROWS]
    run = dry_run("leveling", tmp_path, without=("vllm",))
    assert_complete(run, rows)
    for name in rows:
        row = run.rows[name]
        assert row["samples_per_s"] > 0
        assert row["tokens_per_s"] > row["supervised_tokens_per_s"] > 0
        assert 0 <= row["padding_share"] < 1
        assert row["tflops_per_s"] > 0
    # Batches of similar lengths have less padding than random ones.
    for plain, ours in (LORA_ROWS, FULL_ROWS):
        assert run.rows[ours]["padding_share"] < run.rows[plain]["padding_share"]
        assert run.rows[ours]["log"][-1]["step"] == 10
    assert run.summary["prompt_tokens"]["min"] < run.summary["prompt_tokens"]["max"]
    assert run.summary["ours_over_plain_lora"] > 0
    assert run.summary["ours_over_plain_full"] > 0


@pytest.mark.timeout(300)
def test_a_row_that_takes_too_long_fails_alone(tmp_path: Path) -> None:
    run = dry_run("leveling", tmp_path, "--rows", "plain-lora", "--row-timeout-s", "1")
    assert run.exit_code == 1
    assert "not finished after 1 s" in run.rows["plain-lora"]["failed"]
    assert run.summary["ours_over_plain_lora"] is None


@pytest.mark.timeout(300)
def test_bundled_models_are_trained_without_ray_and_vllm(tmp_path: Path) -> None:
    run = dry_run("bundled_models", tmp_path, without=("ray", "vllm"))
    assert_complete(run, ["student"])
    row = run.rows["student"]
    assert row["num_samples"] == 8 * row["num_steps"] > 0
    assert {line["stage"] for line in row["log"]} == {"student-sight", "student-numbers"}
    assert all(math.isfinite(line["loss"]) for line in row["log"])
    assert 0 <= row["exact_match"]["all"] <= 1
    assert (tmp_path / "student.safetensors").stat().st_size > 4 * row["num_parameters"]
