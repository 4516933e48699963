"""The GPU measurements that do not need vLLM, as dry runs."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from tests.gpu_benchmarks import assert_complete, dry_run


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("plain", "ours"), [("plain-lora", "ours-lora"), pytest.param("plain-full", "ours-full", marks=pytest.mark.long)]
)
def test_leveling_is_measured_against_a_plain_trainer_without_vllm(plain: str, ours: str, tmp_path: Path) -> None:
    run = dry_run("leveling", tmp_path, "--rows", plain, ours, without=("vllm",))
    assert_complete(run, [plain, ours])
    for name in (plain, ours):
        row = run.rows[name]
        assert row["samples_per_s"] > 0
        assert row["tokens_per_s"] > row["supervised_tokens_per_s"] > 0
        assert 0 <= row["padding_share"] < 1
        assert row["tflops_per_s"] > 0
    # Batches of similar lengths have less padding than random ones.
    assert run.rows[ours]["padding_share"] < run.rows[plain]["padding_share"]
    assert run.rows[ours]["log"][-1]["step"] == 10
    assert run.summary["prompt_tokens"]["min"] < run.summary["prompt_tokens"]["max"]
    ratio = f"ours_over_{plain.replace('-', '_')}"
    assert run.summary[ratio] > 0


@pytest.mark.timeout(300)
def test_a_row_that_takes_too_long_fails_alone(tmp_path: Path) -> None:
    run = dry_run("leveling", tmp_path, "--rows", "plain-lora", "--row-timeout-s", "1")
    assert run.exit_code == 1
    assert "not finished after 1 s" in run.rows["plain-lora"]["failed"]
    assert run.summary["ours_over_plain_lora"] is None


@pytest.mark.timeout(600)
def test_bundled_models_are_trained_without_ray_and_vllm(tmp_path: Path) -> None:
    run = dry_run("bundled_models", tmp_path, without=("ray", "vllm"))
    assert_complete(run, ["student"])
    row = run.rows["student"]
    assert row["num_samples"] == 8 * row["num_steps"] > 0
    assert {line["part"] for line in row["log"]} == {"student-sight", "student-numbers"}
    assert all(math.isfinite(line["loss"]) for line in row["log"])
    assert 0 <= row["exact_match"]["all"] <= 1
    assert (tmp_path / "student.safetensors").stat().st_size > 4 * row["num_parameters"]


def test_a_second_question_gives_the_same_reply_with_kept_keys_and_values(tmp_path: Path) -> None:
    run = dry_run("second_question", tmp_path, without=("ray", "vllm"))
    assert_complete(run, ["112 x 112, batch 2"])
    (row,) = run.rows.values()
    assert row["num_image_tokens"] == 16
    assert 0 < row["num_second_text_tokens"] < row["num_prompt_tokens"] - 16
    # Wrong positions make an error of 0.005, another image one of 0.2.
    assert row["logits_error"] < 1e-4
    assert row["same_first_token_share"] == 1
    assert min(value for name, value in row.items() if name.endswith("_ms")) > 0


def test_check_reports_a_missing_package_and_all_else(tmp_path: Path) -> None:
    run = dry_run("check", tmp_path, without=("peft",))
    assert run.exit_code == 1
    assert list(run.rows) == ["imports of core", "versions", "matrix product", "machine"]
    imports = run.rows["imports of core"]
    assert {name: error for name, error in imports["failed"].items() if "peft is not installed here" not in error} == {}
    assert "peft" in imports["failed"]
    assert {"transformers", "mpa_ray.demo.train", "mpa_ray.metrics"} <= set(imports["imported"])
    assert run.rows["versions"]["torch"]
    assert run.rows["matrix product"]["tflops"] > 0
