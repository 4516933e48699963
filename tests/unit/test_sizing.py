"""The sizing of a run: memory against numbers worked out by hand, times against invented phases."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from mpa_ray.config import EngineSettings, LevelConfig, ModelConfig, RunConfig
from mpa_ray.errors import ConfigError
from mpa_ray.models.gpus import GPUS
from mpa_ray.records import EpochCounts
from mpa_ray.run.fingerprint import of_dataset
from mpa_ray.run.phase_record import PhaseKey
from mpa_ray.run.run import Run
from mpa_ray.sizing.architecture import Architecture, architecture_of
from mpa_ray.sizing.memory import check_engine, check_training, layer_bytes_per_token, training_gib
from mpa_ray.sizing.plan import size_run
from mpa_ray.sizing.rates import Rate
from mpa_ray.sizing.render import render_sizing
from mpa_ray.sizing.roofline import Roofline
from mpa_ray.sizing.run_rates import RunRates
from mpa_ray.sizing.sizing import PhaseSizing, Sizing
from mpa_ray.storage.open import open_storage
from mpa_ray.tasks.library import find_task
from tests.conftest import scripted_tree

ROOT = Path(__file__).parents[2]
GIB = 2**30

VISION = {
    "depth": 32,
    "embed_dim": 1280,
    "mlp_ratio": 4,
    "num_heads": 16,
    "in_chans": 3,
    "hidden_size": 1536,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
QWEN2_VL_2B = {
    "model_type": "qwen2_vl",
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
    "max_position_embeddings": 32768,
    "vision_config": VISION,
}
"""config.json of Qwen/Qwen2-VL-2B-Instruct; the same numbers are in UbiquitousLearning/mllm, configuration_qwen2vl.hpp.
Its card on the hub counts 2.21 billion parameters."""
QWEN2_VL_7B = {
    **QWEN2_VL_2B,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "tie_word_embeddings": False,
    "vision_config": {**VISION, "hidden_size": 3584},
}
"""As zhenhua32/Qwen2-VL prints the modules of Qwen/Qwen2-VL-7B-Instruct."""


def sizes(settings: dict[str, Any] = QWEN2_VL_2B) -> Architecture:
    return architecture_of(settings, "model")


def served(**settings: Any) -> ModelConfig:
    return ModelConfig.model_validate({"model": "m", "gpus_per_replica": 1, **settings})


# Sizes, by hand


def test_the_parameters_of_qwen2_vl_2b_are_counted() -> None:
    architecture = sizes()
    layer = 2 * 1536 * 1536 + 2 * 1536 * 256 + 3 * 1536 * 8960
    assert architecture.num_parameters("language") == 151936 * 1536 + 28 * layer
    assert architecture.num_parameters("vision") == 3 * 2 * 14 * 14 * 1280 + 32 * (4 * 1280 * 1280 + 2 * 1280 * 5120)
    assert architecture.num_parameters("projector") == 5120 * 5120 + 5120 * 1536
    # With biases and norms it has 2,208,985,600.
    assert architecture.total == pytest.approx(2_208_985_600, rel=1e-3)
    # Keys and values, 28 layers, 2 heads of 128, 2 bytes; a head is not cut.
    assert [architecture.kv_bytes_per_token(2.0, gpus) for gpus in (1, 2, 4)] == [28672, 14336, 14336]
    # LoRA of rank 16 on Qwen2's 1.5 B language model, as peft counts it.
    assert architecture.num_adapter_parameters(["language"], 16) == 18_464_768
    # 512 patches of 28 x 28.
    assert architecture.image_rule.most_tokens(128 * 28 * 28, 512 * 28 * 28) == 512


def test_an_untied_output_head_is_counted() -> None:
    assert sizes(QWEN2_VL_7B).total == pytest.approx(8.291e9, rel=1e-3)


@pytest.mark.parametrize(
    ("quantization", "gib"),
    [
        ({"quant_method": "awq", "bits": 4}, (6_525_288_448 / 2 + 2 * 1_765_000_000) / GIB),
        ({"quant_method": "fp8"}, (6_525_288_448 + 2 * 1_765_000_000) / GIB),
        (
            {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": {"num_bits": 8}}}},
            (6_525_288_448 + 2 * 1_765_000_000) / GIB,
        ),
    ],
)
def test_quantized_layers_are_the_language_models(quantization: dict[str, Any], gib: float) -> None:
    architecture = sizes({**QWEN2_VL_7B, "quantization_config": quantization})
    assert architecture.weight_bytes("auto") / GIB == pytest.approx(gib, rel=0.01)


def test_an_image_of_several_tiles_also_has_a_view_of_the_whole() -> None:
    internvl = json.loads((ROOT / "mpa_ray/demo/models/student-internvl/config.json").read_text())
    architecture = sizes(internvl)
    # Tiles of 112 x 112, patches of 14, 4 in a token.
    sizes_in_pixels = ((112, 112), (224, 112), (224, 225))
    assert [architecture.image_rule.tokens(*size) for size in sizes_in_pixels] == [16, 48, 80]
    weights = (ROOT / "mpa_ray/demo/models/student-internvl/model.safetensors").stat().st_size
    assert architecture.weight_bytes("float32") == pytest.approx(weights, rel=0.02)


def test_a_token_passes_through_some_of_the_experts() -> None:
    moe = {**QWEN2_VL_2B, "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 1000}
    architecture = sizes(moe)
    assert architecture.num_expert_parameters == 8 * 3 * 1536 * 1000 * 28
    attention = 28 * (2 * 1536 * 1536 + 2 * 1536 * 256)
    per_token = architecture.language_operations(1e-9) / 1e-9
    assert per_token == pytest.approx(2 * (attention + architecture.num_expert_parameters / 4))


def test_a_config_json_without_sizes_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"its config\.json lacks a size"):
        architecture_of({"model_type": "bert", "hidden_size": 3}, "m")


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_size": float("inf")},
        {"hidden_size": 5e-324},
        {"hidden_size": 0},
        {"hidden_size": -1536},
        {"hidden_size": "1536"},
        {"hidden_size": None},
        {"hidden_size": [1536]},
        {"num_hidden_layers": 1e-320},
        {"num_hidden_layers": 10**400},
        {"vocab_size": float("inf")},
        {"num_attention_heads": 0},
        {"text_config": [1]},
        {"vision_config": []},
        {"vision_config": "big"},
        {"vision_config": {**QWEN2_VL_2B["vision_config"], "patch_size": []}},
        {"vision_config": {**QWEN2_VL_2B["vision_config"], "patch_size": 1e-320}},
        {"vision_config": {**QWEN2_VL_2B["vision_config"], "depth": float("inf")}},
        {"downsample_ratio": 1e-320},
        {"downsample_ratio": "half"},
        {"quantization_config": {"bits": float("inf")}},
        {"quantization_config": [4]},
        {"num_experts": 1e308, "num_experts_per_tok": 2},
    ],
)
def test_a_config_json_with_impossible_sizes_is_an_error(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"^model = 'model': its config\.json lacks a size") as caught:
        sizes({**QWEN2_VL_2B, **change})
    assert len(str(caught.value).splitlines()) == 1


# Memory


def test_a_small_model_on_a_large_gpu_fits() -> None:
    check = check_engine("student", served(), sizes(), "L4", 22.0)
    # 0.9 * 22 - 2,208,299,008 * 2 bytes - 2, over 28,672 bytes a token.
    assert check.result == "fits"
    assert check.detail.startswith(f"{int((19.8 - 2_208_299_008 * 2 / GIB - 2) * GIB / 28672):,} tokens")


def test_too_small_a_cache_is_tight_and_has_a_remedy() -> None:
    # 19.8 - 15.44 - 2 = 2.36 GiB: more than 1.75 for one sequence of 32,768 tokens, less than 64 usual ones take.
    check = check_engine("teacher", served(), sizes(QWEN2_VL_7B), "L4", 22.0)
    assert check.result == "tight"
    assert check.remedies[0] == "engine.max_num_seqs 62"
    fewer = served(engine={"max_num_seqs": 62})
    assert check_engine("teacher", fewer, sizes(QWEN2_VL_7B), "L4", 22.0).result == "fits"


def test_the_remedies_for_weights_that_do_not_fit_do_fit() -> None:
    check = check_engine("teacher", served(), sizes(QWEN2_VL_7B), "T4", 14.5)
    assert check.result == "does not fit"
    assert "engine.tensor_parallel_size 2 with gpus_per_replica 2" in check.remedies
    two = served(gpus_per_replica=2, engine={"tensor_parallel_size": 2, "max_num_seqs": 32})
    assert check_engine("teacher", two, sizes(QWEN2_VL_7B), "T4", 14.5).result == "fits"
    awq = sizes({**QWEN2_VL_7B, "quantization_config": {"quant_method": "awq", "bits": 4}})
    assert check_engine("teacher", served(engine={"max_model_len": 4096}), awq, "T4", 14.5).result == "fits"


def test_the_remedy_for_a_sequence_above_the_cache_is_a_shorter_one() -> None:
    check = check_engine("student", served(engine={"max_model_len": 32768}), sizes(), "small", 7.5)
    # 6.75 - 4.11 - 2 = 0.64 GiB; 32,768 tokens take 0.875.
    assert check.result == "does not fit"
    assert check.remedies[0].startswith("engine.max_model_len 23")


def test_a_share_of_a_gpu_is_a_share_of_its_memory() -> None:
    half = check_engine("student", served(gpus_per_replica=0.5), sizes(), "L4", 22.0)
    assert half.available_gib == pytest.approx(0.9 * 0.5 * 22.0)
    utilized = served(engine={"engine_args": {"gpu_memory_utilization": 0.7}})
    assert check_engine("student", utilized, sizes(), "L4", 22.0).available_gib == pytest.approx(0.7 * 22.0)


def test_full_training_holds_weights_gradients_moments_and_a_copy() -> None:
    level = LevelConfig.model_validate({"gpus_per_worker": 1, "method": {"kind": "full"}})
    parts_gib = training_gib(level, sizes(), 512)
    language = 151936 * 1536 + 28 * 46_792_704
    assert parts_gib["trained weights, gradients and AdamW"] == pytest.approx(18 * language / GIB)
    assert parts_gib["frozen weights"] == pytest.approx(4 * (sizes().total - language) / GIB)
    sharded = level.model_copy(update={"parallel": "fsdp", "num_workers": 4})
    assert training_gib(sharded, sizes(), 512)["frozen weights"] == pytest.approx(parts_gib["frozen weights"] / 4)


def test_lora_holds_frozen_weights_in_16_bits_and_adapters_in_32() -> None:
    level = LevelConfig.model_validate({"gpus_per_worker": 1})
    parts_gib = training_gib(level, sizes(), 512)
    assert parts_gib["frozen weights"] == pytest.approx(2 * sizes().total / GIB)
    assert parts_gib["trained weights, gradients and AdamW"] == pytest.approx(16 * 18_464_768 / GIB)
    assert check_training("level", level, sizes(), "H100", 79.0, 512).result == "fits"
    check = check_training("level", level, sizes(), "L4", 22.0, 512)
    assert check.result == "does not fit"
    tokens = int(check.remedies[0].rpartition(" ")[2])
    fitting = level.model_copy(update={"tokens_per_micro_batch": tokens})
    assert check_training("level", fitting, sizes(), "L4", 22.0, 512).result == "fits"
    assert "level.gradient_checkpointing true" in check.remedies


@pytest.mark.parametrize("is_lora", [True, False])
def test_activations_are_what_transformers_saves(is_lora: bool) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import Qwen2Config, Qwen2Model

    width, inner, layers, tokens = 512, 1536, 2, 384
    config = Qwen2Config(
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=64,
        attn_implementation="sdpa",
    )
    model: Any = Qwen2Model(config)
    if is_lora:
        names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        model = get_peft_model(model.to(torch.bfloat16), LoraConfig(r=4, target_modules=names))
    kept: dict[int, torch.Tensor] = {
        parameter.untyped_storage().data_ptr(): parameter for parameter in model.parameters()
    }
    weights = set(kept)

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    dtype = next(model.parameters()).dtype
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16):
        inputs = torch.randn(1, tokens, width, dtype=dtype, requires_grad=True)
        output = model(inputs_embeds=inputs, use_cache=False)
    assert output.last_hidden_state.shape == (1, tokens, width)
    # What has no dimension of tokens is a weight's copy in the other format.
    saved = sum(x.untyped_storage().nbytes() for at, x in kept.items() if at not in weights and tokens in x.shape)
    shape = {
        **QWEN2_VL_2B,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_hidden_layers": layers,
    }
    assert layer_bytes_per_token(sizes(shape), is_lora) == pytest.approx(saved / layers / tokens, rel=0.08)


# Times


def tree(run_dir: Path, **more: Any) -> dict[str, Any]:
    student = {"name": "small", "model": "one", "level": {"replay_share": 0.5}}
    return {
        "run_dir": str(run_dir),
        "task": "demo_world",
        "source": {"path": "/images", "shard_size": 100},
        "teacher": {"model": "big"},
        "students": [student],
        **more,
    }


def measured_run(root: Path) -> Run:
    """1,000 images: annotated at 50 a second, answered at 200, started in 20 s; 400 samples at 16 a second on 2
    workers."""
    run = Run(open_storage(str(root)))
    config = RunConfig.model_validate(
        tree(
            root,
            students=[{"name": "small", "model": "one", "num_replicas": 2, "level": {"num_workers": 2}}],
            evaluate={"benchmarks": [{"name": "held", "path": "q.jsonl"}]},
        )
    )
    run.record_config(config, {})
    run.write_json("corpus/manifest.json", {"num_images": 1000, "num_shards": 10})
    phases = {
        "annotate": (60.0, 20.0, 1000),
        "identify.small": (25.0, 2.5, 1000),
        "evaluate.teacher": (30.0, 10.0, 500),
    }
    for name, (wall_s, working_s, num_images) in phases.items():
        tokens = {"num_prompt_tokens": 100 * num_images, "num_output_tokens": 0}
        attempts = {"num_attempts": 2 if name == "annotate" else 1}
        took = {"wall_s": wall_s, "working_s": working_s, "num_images": num_images}
        run.write_json(f"phases/{name}.json", {**took, **attempts, **tokens})
    run.write_json("phases/level.small.json", {"wall_s": 75.0, "num_attempts": 1})
    run.write_json("phases/index.json", {"wall_s": 2.0, "num_attempts": 1})
    run.write_json("parity/small/manifest.json", {"num_samples": 400})
    counts = EpochCounts(400, num_mixed_in=0, num_held_out=0, num_retained=0, num_too_long=0, num_samples=400)
    run.write_json("students/small/parity/epoch/manifest.json", asdict(counts))
    run.write_json("students/small/parity/complete.json", {})
    log = [{"samples_per_s": per_s, "memory_gib": 1.0} for per_s in (2.0, 15.0, 16.0, 17.0)]
    run.write_json("students/small/parity/training.json", {"log": log})
    return run


def planned(config: dict[str, Any]) -> Sizing:
    return size_run(RunConfig.model_validate(config))


def times(sizing: Sizing) -> dict[str, float | None]:
    return {phase.key.label: phase.wall_s for phase in sizing.phases}


def test_the_rate_of_a_shared_engine_counts_each_model(tmp_path: Path) -> None:
    run = measured_run(tmp_path / "earlier")
    alone = RunRates.of_run(run)
    phase = run.read_json("phases/identify.small.json")
    run.write_json("phases/identify.small.json", {**phase, "num_images_by_models": 4 * phase["num_images"]})
    together = RunRates.of_run(run)
    rates = [rates_of.identified_images_per_s("small", "one") for rates_of in (alone, together)]
    assert rates == [200.0, 800.0]
    assert [rates_of.tokens_per_image(PhaseKey("identify", "small")) for rates_of in (alone, together)] == [100.0, 25.0]


def test_a_run_is_sized_from_another_run(tmp_path: Path) -> None:
    measured_run(tmp_path / "earlier")
    new = {"name": "new", "model": "one", "num_replicas": 4, "level": {"replay_share": 0.5}}
    config = tree(
        tmp_path / "run",
        students=[new],
        plan={"from_run": str(tmp_path / "earlier"), "num_images": 10_000},
        evaluate={"benchmarks": [{"name": "held", "path": "q.jsonl", "limit": 100}]},
    )
    seconds = times(planned(config))
    # Starts: (60 - 20) / 2 attempts, 25 - 2.5, 30 - 10, and the median for a check. Training: 75 - 400 / 16.
    assert seconds == {
        "index": pytest.approx(20.0),
        "annotate": pytest.approx(20 + 10_000 / 50),
        # 1,000 images in 2.5 s on 2 replicas; now 4 of them.
        "identify new": pytest.approx(22.5 + 10_000 / (4 * 200)),
        # 0.4 parity samples an image, half as many replayed, on 1 worker of 8 samples a second.
        "level new": pytest.approx(50 + 6_000 / 8),
        "check new": pytest.approx(20 + 8 / 50),
        # 100 questions are one shard: 3 of the 4 replicas would have nothing to do.
        "evaluate new.before": pytest.approx(20 + 100 / 50),
        "evaluate new.after": pytest.approx(20 + 100 / 50),
        "evaluate teacher": pytest.approx(20 + 100 / 50),
    }


def test_given_rates_take_precedence_over_measured_ones(tmp_path: Path) -> None:
    measured_run(tmp_path / "earlier")
    plan = {
        "from_run": str(tmp_path / "earlier"),
        "num_images": 100,
        "teacher_images_per_s": 10,
        "engine_start_s": 0,
        "parity_share": 0.1,
        "samples_per_s": 5,
        "training_start_s": 1,
    }
    sizing = planned(tree(tmp_path / "run", plan=plan))
    assert times(sizing)["annotate"] == pytest.approx(10)
    assert times(sizing)["level small"] == pytest.approx(1 + 15 / 5)
    origins = {phase.key.label: phase.rate.origin for phase in sizing.phases}
    assert (origins["annotate"], origins["identify small"]) == ("given", "measured")


def test_every_arm_is_trained_checked_and_evaluated(tmp_path: Path) -> None:
    measured_run(tmp_path / "before")
    plan = {"from_run": str(tmp_path / "before"), "num_images": 2000, "parity_share": 0.1}
    config = tree(
        tmp_path / "run", plan=plan, evaluate={"benchmarks": [{"path": "q.jsonl", "limit": 100}], "teacher": False}
    )
    config["annotate"] = {"num_questions": 2}
    config["students"][0] |= {"arms": ["parity", "all", "random", "labels"], "labels": {"path": "l.jsonl"}}
    counts = {phase.key.label: phase.count for phase in planned(config).phases}
    trained = {name: count for name, count in counts.items() if name.startswith("level")}
    assert trained == {
        "level small": 300,
        "level small all": 4000,
        "level small random": 200,
        "level small labels": None,
    }
    for name in ("small", "small all", "small random", "small labels"):
        assert counts[f"check {name}"] is not None
    measured = [name for name in counts if name.startswith("evaluate")]
    assert measured == [f"evaluate small.{when}" for when in ("before", "after", "all", "random", "labels")]


def test_students_with_the_same_model_are_asked_once(tmp_path: Path) -> None:
    students = [{"name": name, "model": "one"} for name in ("a", "b")] + [{"name": "c", "model": "two"}]
    plan = {"num_images": 100, "teacher_images_per_s": 1, "student_images_per_s": 1, "num_benchmark_questions": 8}
    config = tree(tmp_path / "run", students=students, plan=plan, evaluate={"benchmarks": [{"path": "q.jsonl"}]})
    names = list(times(planned(config)))
    assert [n for n in names if n.startswith("identify")] == ["identify a", "identify c"]
    assert [n for n in names if n.endswith(".before")] == ["evaluate a.before", "evaluate c.before"]
    assert [n for n in names if n.startswith("level")] == ["level a", "level b", "level c"]


@pytest.mark.parametrize(
    "setting",
    [{"chat_template_args": {"enable_thinking": False}}, {"max_reasoning_tokens": 64}, {"max_image_pixels": 10**6}],
)
def test_students_with_other_settings_of_replies_are_asked_again(tmp_path: Path, setting: dict[str, Any]) -> None:
    students = [{"name": "a", "model": "one"}, {"name": "b", "model": "one", **setting}]
    plan = {"num_images": 100, "teacher_images_per_s": 1, "student_images_per_s": 1}
    names = list(times(planned(tree(tmp_path / "run", students=students, plan=plan))))
    assert [n for n in names if n.startswith("identify")] == ["identify a", "identify b"]


def test_without_rates_or_gpus_the_page_says_what_is_missing(tmp_path: Path) -> None:
    sizing = planned(tree(tmp_path / "run", plan={"num_images": 100}))
    assert not sizing.is_complete
    text = render_sizing(sizing)
    assert "not known: annotate, identify small, level small, check small. Set plan.from_run" in text
    *_, total = text.split("\nnot known")[0].splitlines()
    assert total.split() == ["total", "of", "known", "-", "-"]
    assert not any(sign in text for sign in ("?", "0:00:00"))


def test_a_run_that_was_too_small_is_named(tmp_path: Path) -> None:
    """In earlier versions, the page said to set `plan.from_run`, even if it was set."""
    sizing = planned(tree(tmp_path / "run", plan={"num_images": 100}))
    text = render_sizing(replace(sizing, from_run="runs/tiny"))
    assert "runs/tiny was too small to measure this: set plan.from_run to a run with more images" in text


def test_rates_and_times_are_written_without_exponents() -> None:
    def row(rate: float, count: float) -> list[str]:
        phase = PhaseSizing(PhaseKey("annotate"), count, "images", Rate(rate, "given"), 1, 0.0, 1.0)
        return render_sizing(Sizing([phase], [], [])).splitlines()[1].split()

    assert row(14_783.4, 14_783.4 * 3600)[3:] == ["14,783/s", "given", "1", "1:00:00", "1.00"]
    assert row(7.44, 1)[3:] == ["7.4/s", "given", "1", "<", "1", "s", "0.00"]
    assert row(0.0312, 0)[3:] == ["0.031/s", "given", "1", "0:00:00", "0.00"]


def test_an_unknown_kind_of_gpu_is_refused_with_a_similar_one(images: Path, tmp_path: Path) -> None:
    tree = {**scripted_tree(images, tmp_path / "run"), "plan": {"gpu": "H1000", "num_images": 5}}
    with pytest.raises(ConfigError, match=r"^plan\.gpu = 'H1000': is not a known kind of GPU\. Did you mean H100"):
        size_run(RunConfig.model_validate(tree))
    tree["plan"]["gpu_memory_gib"] = 96
    assert size_run(RunConfig.model_validate(tree)).phases


def test_a_checkpoint_without_sizes_is_noted_with_its_setting(images: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[]")
    tree = scripted_tree(images, tmp_path / "run")
    tree["source"]["limit"] = 5
    tree["students"][0] = {"model": str(tmp_path), "gpus_per_replica": 1, "accelerator_type": "H100"}
    notes = size_run(RunConfig.model_validate(tree)).notes
    assert any(
        note.startswith(f"students.0.model = '{tmp_path}': its config.json is not a JSON object") for note in notes
    )


def test_a_source_without_images_is_noted(images: Path, tmp_path: Path) -> None:
    tree = scripted_tree(images, tmp_path / "run")
    tree["source"] = {"path": f"{images}x", "limit": 5}
    notes = size_run(RunConfig.model_validate(tree)).notes
    assert any(f"source.path = '{images}x': does not exist." in note for note in notes)
    tree["source"] = {"path": str(images), "limit": 5}
    assert not any("source.path" in note for note in size_run(RunConfig.model_validate(tree)).notes)


def test_the_number_of_images_comes_from_the_plan_the_run_or_the_limit(tmp_path: Path) -> None:
    config = tree(tmp_path / "run")
    with pytest.raises(ConfigError, match=r"plan\.num_images.*Run mpa-ray index"):
        planned(config)
    config["source"]["limit"] = 70
    assert planned(config).phases[0].count == 70
    Run(open_storage(config["run_dir"])).write_json("corpus/manifest.json", {"num_images": 60, "num_shards": 1})
    assert planned(config).phases[0].count == 60
    assert planned({**config, "plan": {"num_images": 50}}).phases[0].count == 50


def test_the_images_of_a_local_source_are_counted_up_to_the_limit(images: Path, tmp_path: Path) -> None:
    """In earlier versions, the plan took `source.limit`, even if the source held fewer images."""
    tree = scripted_tree(images, tmp_path / "run")
    for limit, count in ((70, 60), (50, 50), (10_001, 10_001)):
        tree["source"]["limit"] = limit
        sizing = size_run(RunConfig.model_validate(tree))
        assert sizing.phases[0].count == count
        noted = any(note == f"images: source.limit, {limit}; the source may hold fewer" for note in sizing.notes)
        assert noted == (limit == 10_001)


def test_settings_that_differ_from_the_measured_run_are_noted(tmp_path: Path) -> None:
    measured_run(tmp_path / "earlier")
    config = tree(tmp_path / "run", plan={"from_run": str(tmp_path / "earlier"), "num_images": 1})
    config["teacher"] = {"model": "bigger", "max_reasoning_tokens": 4096}
    config["annotate"] = {"num_questions": 2}
    notes = planned(config).notes
    assert "teacher.model was big in the run that measured the rates, and is bigger" in notes
    assert "teacher.max_reasoning_tokens was None in the run that measured the rates, and is 4096" in notes
    assert "annotate.num_questions was 1 in the run that measured the rates, and is 2" in notes


def test_cost_is_shown_only_if_a_price_is_set() -> None:
    phase = PhaseSizing(PhaseKey("annotate"), 3600.0, "images", Rate(1.0, "given"), 2, 1800.0, 2.0, 2)
    assert phase.gpu_hours == pytest.approx(2 * 1.0)
    assert "cost" not in render_sizing(Sizing([phase], [], []))
    page = render_sizing(Sizing([phase], [], [], 1.5))
    assert "3.00" in page.splitlines()[1]
    assert Sizing([phase], [], [], 1.5).to_json()["cost"] == pytest.approx(3.0)


def checkpoint(folder: Path, settings: dict[str, Any]) -> str:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(settings))
    return str(folder)


def on_gpus(tmp_path: Path, gpu: str) -> dict[str, Any]:
    teacher, student = (checkpoint(tmp_path / n, c) for n, c in (("7b", QWEN2_VL_7B), ("2b", QWEN2_VL_2B)))
    engine = {"gpus_per_replica": 1, "engine": {"max_model_len": 4096}}
    return tree(
        tmp_path / "run",
        teacher={"model": teacher, **engine},
        plan={"num_images": 1000, "gpu": gpu},
        students=[
            {
                "name": "small",
                "model": student,
                **engine,
                "level": {"gpus_per_worker": 1, "gradient_checkpointing": True},
            }
        ],
    )


def test_estimates_depend_on_the_gpu_and_are_marked(tmp_path: Path) -> None:
    config = on_gpus(tmp_path, "H100")
    h100 = planned(config)
    assert {phase.rate.origin for phase in h100.phases} == {"estimated"}
    assert h100.is_complete
    assert h100.fits
    assert "expect lower rates" in render_sizing(h100)
    rates = {phase.key.label: phase.rate.value or 0.0 for phase in h100.phases}
    # 632 tokens of a prompt with its image through 6.53 G weights, and 2,048 patches through 0.63 G, at 0.4 of 989 T:
    # at least 27 ms.
    assert 20 < rates["annotate"] < 1 / 0.027
    assert rates["identify small"] > rates["annotate"]
    l4 = planned({**config, "plan": {"num_images": 1000, "gpu": "L4"}})
    assert (l4.phases[0].rate.value or 0.0) < rates["annotate"] / 5


class OtherEngine(EngineSettings):
    """A kind of engine that serves checkpoints and is not vLLM."""

    has_checkpoint = True

    @property
    def default_images_in_flight(self) -> int:
        return 1

    def identity_fields(self) -> dict[str, Any]:
        return {}


def test_an_engine_of_any_kind_has_an_estimate(tmp_path: Path) -> None:
    config, roofline = RunConfig.model_validate(tree(tmp_path)), Roofline(GPUS["H100"], 0.4)
    one_at_a_time = served(engine={"max_num_seqs": 1})
    other = served().model_copy(update={"engine": OtherEngine()})
    seconds = [roofline.answer_s(model, sizes(), 100, config) for model in (other, one_at_a_time, served())]
    assert seconds[0] == seconds[1] > seconds[2]
    assert check_engine("other", other, sizes(), "H100", 80).result == "not checked"


def test_the_job_needs_no_ray_and_fails_if_a_model_does_not_fit(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(on_gpus(tmp_path, "T4")))
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['plan.py', '--config', {str(config)!r}]\n"
        "try:\n"
        "    runpy.run_path('jobs/plan.py', run_name='__main__')\n"
        "finally:\n"
        "    heavy = {'torch', 'ray', 'vllm', 'transformers'} & set(sys.modules)\n"
        "    assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "teacher on T4: does not fit" in done.stdout
    assert not (tmp_path / "run").exists()


def test_remedies_name_settings_as_the_configuration_does(tmp_path: Path) -> None:
    config = on_gpus(tmp_path, "T4")
    config["plan"]["gpu_memory_gib"] = 7.5
    checks = {check.name: check for check in planned(config).checks}
    assert any(remedy.startswith("teacher.engine.") for remedy in checks["teacher"].remedies)
    settings = [
        remedy for check in checks.values() for remedy in check.remedies if "engine." in remedy or "level." in remedy
    ]
    assert any(remedy.startswith("students.0.level.") for remedy in settings)
    for remedy in settings:
        assert re.match(r"(teacher|students\.0)\.(engine|level)\.", remedy), remedy
        assert not re.search(r"(?<![\w.])(engine\.|level\.|gpus_per_replica)", remedy), remedy


def test_the_plan_is_part_of_no_fingerprint(tmp_path: Path) -> None:
    one, other = (RunConfig.model_validate(tree(tmp_path, **more)) for more in ({}, {"plan": {"num_images": 3}}))
    for folder in (
        "corpus",
        "annotations",
        f"verdicts/{one.students[0].name}",
        f"students/{one.students[0].name}/parity",
    ):
        fingerprints = [of_dataset(config, find_task(config.task), folder, lambda *_: {}) for config in (one, other)]
        assert fingerprints[0] == fingerprints[1]
