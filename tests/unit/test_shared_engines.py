"""Which models share an engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from peft import LoraConfig
from safetensors.numpy import save_file

from mpa_ray.config import ModelConfig, ObjectStoreConfig, resolve_path
from mpa_ray.models.shared_engines import Adapter, servable_adapter, shared_engines

BASE = resolve_path("bundled:demo/models/student")
OTHER_BASE = resolve_path("bundled:demo/models/teacher")
STORE = ObjectStoreConfig()
LANGUAGE = "base_model.model.model.language_model.layers.0.self_attn.q_proj"
VISION = "base_model.model.model.visual.blocks.0.attn.qkv"


def adapter(
    folder: Path, base: str = BASE, module: str = LANGUAGE, weight: str = "lora_A.weight", **settings: Any
) -> str:
    folder.mkdir(parents=True)
    plain = {"peft_type": "LORA", "r": 8, "bias": "none", "base_model_name_or_path": base}
    (folder / "adapter_config.json").write_text(json.dumps(plain | settings))
    save_file({f"{module}.{weight}": np.zeros((2, 2), np.float32)}, folder / "adapter_model.safetensors")
    return str(folder)


def test_a_plain_adapter_of_the_language_model_is_served_without_merging(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "a", r=24, target_modules=["q_proj"], use_rslora=True, init_lora_weights="gaussian")
    assert servable_adapter(folder, STORE) == Adapter(folder, BASE, 24)
    assert servable_adapter(BASE, STORE) is None


def test_the_default_settings_of_peft_are_plain(tmp_path: Path) -> None:
    LoraConfig(r=4, target_modules=["q_proj"], base_model_name_or_path=BASE).save_pretrained(str(tmp_path / "saved"))
    saved = json.loads((tmp_path / "saved/adapter_config.json").read_text())
    folder = adapter(tmp_path / "a", **{name: value for name, value in saved.items() if name != "peft_type"})
    assert servable_adapter(folder, STORE) == Adapter(folder, BASE, 4)


def test_the_path_of_an_adapter_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = adapter(tmp_path / "a")
    monkeypatch.chdir(tmp_path)
    assert servable_adapter("./a", STORE) == Adapter(folder, BASE, 8)


@pytest.mark.parametrize(
    "settings",
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
def test_an_adapter_that_an_engine_would_not_fully_apply_is_merged(tmp_path: Path, settings: dict[str, Any]) -> None:
    assert servable_adapter(adapter(tmp_path / "a", **settings), STORE) is None


def test_a_damaged_adapter_does_not_affect_other_models(tmp_path: Path) -> None:
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


def test_models_that_differ_only_in_their_adapters_share_an_engine(tmp_path: Path) -> None:
    models = {
        "first": ModelConfig(model=adapter(tmp_path / "1")),
        "teacher": ModelConfig(model=OTHER_BASE),
        "base": ModelConfig(model=BASE),
        "of-other": ModelConfig(model=adapter(tmp_path / "2", OTHER_BASE)),
        "vision": ModelConfig(model=adapter(tmp_path / "3", module=VISION)),
        "larger-images": ModelConfig(model=adapter(tmp_path / "4"), max_pixels=999_999),
        "second": ModelConfig(model=adapter(tmp_path / "5", r=32)),
        "unshared": ModelConfig(model=BASE, share_engine=False),
        "scripted": ModelConfig.model_validate({"model": "scripted", "engine": {"kind": "scripted"}}),
    }
    assert names(models) == [
        ["first", "base", "second"],
        ["teacher", "of-other"],
        ["vision"],
        ["larger-images"],
        ["unshared"],
        ["scripted"],
    ]
    shared, of_teacher, alone = shared_engines(models, STORE)[:3]
    assert shared.base.model == BASE
    assert {name: lora.rank for name, lora in shared.lora_adapters.items()} == {"first": 8, "second": 32}
    assert (of_teacher.base.model, list(of_teacher.lora_adapters)) == (OTHER_BASE, ["of-other"])
    assert (alone.base.model, alone.lora_adapters) == (models["vision"].model, {})


def test_every_adapter_of_an_engine_has_its_slot(tmp_path: Path) -> None:
    """Without a free slot, an engine on a CPU would apply the adapter in its last slot to the base's requests."""
    engine = {"kind": "vllm", "engine_args": {"max_loras": 3}}
    models = {
        name: ModelConfig.model_validate({"model": model, "engine": engine})
        for name, model in [("base", BASE), *((f"{i}", adapter(tmp_path / f"{i}")) for i in range(5))]
    }
    assert names(models) == [["base", "0", "1"], ["2", "3"], ["4"]]
