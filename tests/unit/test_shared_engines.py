"""Which models one engine serves together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from peft import LoraConfig
from safetensors.numpy import save_file

from mpa_ray.config import ModelConfig, ObjectStoreConfig, resolve_path
from mpa_ray.models.shared_engines import Adapter, servable, shared_engines

BASE = resolve_path("bundled:demo/models/student")
OTHER_BASE = resolve_path("bundled:demo/models/teacher")
STORE = ObjectStoreConfig()
LANGUAGE = "base_model.model.model.language_model.layers.0.self_attn.q_proj"
VISION = "base_model.model.model.visual.blocks.0.attn.qkv"


def adapter(
    folder: Path, base: str = BASE, module: str = LANGUAGE, weight: str = "lora_A.weight", **settings: Any
) -> str:
    folder.mkdir(parents=True)
    told = {"peft_type": "LORA", "r": 8, "bias": "none", "base_model_name_or_path": base} | settings
    (folder / "adapter_config.json").write_text(json.dumps(told))
    save_file({f"{module}.{weight}": np.zeros((2, 2), np.float32)}, folder / "adapter_model.safetensors")
    return str(folder)


def test_a_plain_adapter_of_the_language_model_is_taken_up_as_it_is(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "a", r=24, target_modules=["q_proj"], use_rslora=True, init_lora_weights="gaussian")
    assert servable(folder, STORE) == Adapter(folder, BASE, 24)
    assert servable(BASE, STORE) is None


def test_what_peft_saves_by_itself_is_plain(tmp_path: Path) -> None:
    LoraConfig(r=4, target_modules=["q_proj"], base_model_name_or_path=BASE).save_pretrained(str(tmp_path / "told"))
    told = json.loads((tmp_path / "told/adapter_config.json").read_text())
    folder = adapter(tmp_path / "a", **{name: value for name, value in told.items() if name != "peft_type"})
    assert servable(folder, STORE) == Adapter(folder, BASE, 4)


def test_a_relative_path_holds_wherever_the_engine_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = adapter(tmp_path / "a")
    monkeypatch.chdir(tmp_path)
    assert servable("./a", STORE) == Adapter(folder, BASE, 8)


@pytest.mark.parametrize(
    "odd",
    [
        {"module": VISION},
        {"weight": "lora_magnitude_vector"},
        {"use_dora": True},
        {"modules_to_save": ["lm_head"]},
        {"bias": "all"},
        {"peft_type": "IA3"},
        {"module": "base_model.model.lm_head"},
        {"rank_pattern": {"q_proj": 24}},
        {"r": 1024},
        {"init_lora_weights": "pissa"},
        {"lora_bias": True},
        {"layer_replication": [[0, 1]]},
        {"alora_invocation_tokens": [1]},
        {"of_a_later_peft": {"any": 1}},
    ],
)
def test_what_an_engine_would_leave_out_is_merged(tmp_path: Path, odd: dict[str, Any]) -> None:
    assert servable(adapter(tmp_path / "a", **odd), STORE) is None


def test_a_damaged_adapter_takes_no_other_down(tmp_path: Path) -> None:
    damaged = {name: adapter(tmp_path / name) for name in ("no-weights", "gone", "no-json", "no-rank")}
    Path(damaged["no-weights"], "adapter_model.safetensors").write_bytes(b"no weights")
    Path(damaged["gone"], "adapter_model.safetensors").unlink()
    Path(damaged["no-json"], "adapter_config.json").write_text("{")
    Path(damaged["no-rank"], "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "base_model_name_or_path": BASE})
    )
    models = {"sound": ModelConfig(model=adapter(tmp_path / "sound")), "base": ModelConfig(model=BASE)}
    models |= {name: ModelConfig(model=folder) for name, folder in damaged.items()}
    assert names(models) == [["sound", "base"], ["no-weights"], ["gone"], ["no-json"], ["no-rank"]]


def names(models: dict[str, ModelConfig]) -> list[list[str]]:
    return [list(engine.adapters) for engine in shared_engines(models, STORE)]


def test_models_that_differ_in_adapters_alone_share_an_engine(tmp_path: Path) -> None:
    models = {
        "first": ModelConfig(model=adapter(tmp_path / "1")),
        "teacher": ModelConfig(model=OTHER_BASE),
        "base": ModelConfig(model=BASE),
        "of-other": ModelConfig(model=adapter(tmp_path / "2", OTHER_BASE)),
        "vision": ModelConfig(model=adapter(tmp_path / "3", module=VISION)),
        "larger-images": ModelConfig(model=adapter(tmp_path / "4"), max_pixels=999_999),
        "second": ModelConfig(model=adapter(tmp_path / "5", r=32)),
        "aloof": ModelConfig(model=BASE, share_engine=False),
        "scripted": ModelConfig.model_validate({"model": "scripted", "engine": {"kind": "scripted"}}),
    }
    assert names(models) == [
        ["first", "base", "second"],
        ["teacher", "of-other"],
        ["vision"],
        ["larger-images"],
        ["aloof"],
        ["scripted"],
    ]
    shared, of_teacher, alone = shared_engines(models, STORE)[:3]
    assert shared.base.model == BASE
    assert {name: found.rank for name, found in shared.lora_adapters.items()} == {"first": 8, "second": 32}
    assert (of_teacher.base.model, list(of_teacher.lora_adapters)) == (OTHER_BASE, ["of-other"])
    assert (alone.base.model, alone.lora_adapters) == (models["vision"].model, {})


def test_adapters_never_take_turns(tmp_path: Path) -> None:
    """On a CPU, the base's answers would become those of whichever adapter lies in the engine's last place."""
    engine = {"kind": "vllm", "engine_args": {"max_loras": 3}}
    models = {
        name: ModelConfig.model_validate({"model": model, "engine": engine})
        for name, model in [("base", BASE), *((f"{i}", adapter(tmp_path / f"{i}")) for i in range(5))]
    }
    assert names(models) == [["base", "0", "1"], ["2", "3"], ["4"]]
