"""LoRA adapters that one engine serves beside each other and beside the model they belong on."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpa_ray.config import ModelConfig, ObjectStoreConfig, ScriptedEngineConfig, VllmEngineConfig, resolve_path
from mpa_ray.errors import ConfigError
from mpa_ray.models.checkpoints import ADAPTER, adapter_folder, model_identity
from mpa_ray.models.components import component_of

_MOST = 15
"""Adapters of one engine, unless its `max_loras` says otherwise: each takes room on every GPU."""
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks that vLLM lays out room for."""

_PLAIN = frozenset(
    (
        "auto_mapping",
        "base_model_name_or_path",
        "bias",
        "corda_config",
        "ensure_weight_tying",
        "eva_config",
        "exclude_modules",
        "inference_mode",
        "init_lora_weights",
        "layers_pattern",
        "layers_to_transform",
        "loftq_config",
        "lora_alpha",
        "lora_dropout",
        "lora_ga_config",
        "megatron_core",
        "peft_type",
        "peft_version",
        "qalora_group_size",
        "r",
        "revision",
        "runtime_config",
        "target_modules",
        "task_type",
        "use_rslora",
    )
)
"""Settings of PEFT's LoraConfig that leave an adapter what its two matrices say, alike for all modules. Any other that
is set changes what it computes: some of them vLLM refuses, some only its newer versions know."""
_PLAIN_STARTS = ("gaussian", "eva", "orthogonal")
"""Of `init_lora_weights`: the others change the base model's weights, too, and are undone by PEFT alone."""


@dataclass(frozen=True)
class Adapter:
    """An adapter that an engine can take up without merging it."""

    model: str
    """Its folder or s3:// prefix."""
    base: str
    rank: int


def servable(model: str, object_store: ObjectStoreConfig) -> Adapter | None:
    """The adapter that a name stands for; None for a checkpoint, and for an adapter that has to be merged.

    An engine takes low-rank matrices of the language model. What changes the vision tower or the projector it would
    leave out without a word, and what it does not know ends it.

    Raises:
        ConfigError, OSError, ValueError, KeyError, TypeError: the adapter cannot be had, or is damaged.
    """
    folder = adapter_folder(model, object_store)
    if folder is None:
        return None
    settings = json.loads((folder / ADAPTER).read_text(encoding="utf-8"))
    start = settings.get("init_lora_weights")
    is_plain = (
        settings.get("peft_type") == "LORA"
        and settings.get("bias", "none") == "none"
        and (not isinstance(start, str) or start in _PLAIN_STARTS)
        and 0 < settings["r"] <= RANKS[-1]
        and not any(value for name, value in settings.items() if name not in _PLAIN)
    )
    if not is_plain or not _is_of_language(folder):
        return None
    return Adapter(resolve_path(model), settings["base_model_name_or_path"], settings["r"])


def _is_of_language(folder: Path) -> bool:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(folder / "adapter_model.safetensors", "np") as weights:
            names = list(weights.keys())
    except SafetensorError as error:
        raise ValueError(f"{folder}/adapter_model.safetensors: {error}") from error
    return all(
        name.endswith((".lora_A.weight", ".lora_B.weight"))
        and component_of(name) == "language"
        and ".lm_head." not in name
        for name in names
    )


@dataclass(frozen=True)
class EngineGroup:
    """Models that one engine serves: those without an adapter are the base itself."""

    base: ModelConfig
    adapters: Mapping[str, Adapter | None]
    """By the models' names, in their order."""

    @classmethod
    def single(cls, name: str, model: ModelConfig) -> EngineGroup:
        """One model in an engine of its own."""
        return cls(model, {name: None})

    @property
    def names(self) -> tuple[str, ...]:
        """The models, in their order."""
        return tuple(self.adapters)

    @property
    def lora_adapters(self) -> dict[str, Adapter]:
        """Those that the engine has to be started with."""
        return {name: adapter for name, adapter in self.adapters.items() if adapter is not None}

    def only(self, names: Iterable[str]) -> EngineGroup:
        """The same base with some of the models."""
        return EngineGroup(self.base, {name: self.adapters[name] for name in names})


def shared_engines(models: Mapping[str, ModelConfig], object_store: ObjectStoreConfig) -> list[EngineGroup]:
    """The models by the engines that can serve them, several at a time where they differ in nothing but adapters.

    A model that shares with no other is served as it is, an adapter merged into its base; so is one that cannot be had
    or is damaged, for what is wrong with it shows there and hinders no other.
    """
    found: dict[str, list[tuple[str, Adapter | None]]] = {}
    for name, model in models.items():
        if isinstance(model.engine, ScriptedEngineConfig) or not model.share_engine:
            continue
        try:
            adapter = servable(model.model, object_store)
            base = model_identity(adapter.base if adapter is not None else model.model, object_store)
        except (ConfigError, OSError, ValueError, KeyError, TypeError):
            continue
        found.setdefault(f"{base} {_settings(model)}", []).append((name, adapter))
    engines = [
        EngineGroup(models[part[0][0]].model_copy(update={"model": _base(models, part)}), dict(part))
        for group in found.values()
        for part in _parts(group, models[group[0][0]].engine)
        if len(part) > 1
    ]
    shared = {name for engine in engines for name in engine.adapters}
    engines += [EngineGroup.single(name, model) for name, model in models.items() if name not in shared]
    order = list(models)
    return sorted(engines, key=lambda engine: order.index(next(iter(engine.adapters))))


def _settings(model: ModelConfig) -> str:
    """All but the model itself, and what else a student has."""
    return model.model_dump_json(include=set(ModelConfig.model_fields) - {"model"})


def _parts(group: list[tuple[str, Adapter | None]], engine: Any) -> list[list[tuple[str, Adapter | None]]]:
    """Groups as large as an engine may serve: adapters that had to take turns would show themselves in base answers."""
    assert isinstance(engine, VllmEngineConfig)
    most = max(1, engine.engine_args.get("max_loras", _MOST + 1) - 1)
    parts: list[list[tuple[str, Adapter | None]]] = [[]]
    for name, adapter in group:
        if sum(other is not None for _, other in parts[-1]) == most:
            parts.append([])
        parts[-1].append((name, adapter))
    return parts


def _base(models: Mapping[str, ModelConfig], part: list[tuple[str, Adapter | None]]) -> str:
    name, adapter = part[0]
    return adapter.base if adapter is not None else models[name].model
