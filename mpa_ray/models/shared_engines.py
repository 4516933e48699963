"""Group models that one engine can serve together: LoRA adapters of one base model, and the base model."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mpa_ray.config import ModelConfig, ObjectStoreConfig, resolve_path
from mpa_ray.errors import ConfigError
from mpa_ray.models.checkpoints import ADAPTER_SETTINGS, adapter_folder, base_of_adapter, model_identity
from mpa_ray.models.components import component_of

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""The values of `max_lora_rank` that vLLM accepts."""

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
"""Settings of PEFT's LoraConfig with which an adapter is still a plain pair of matrices per module, applied in the same
way in all modules. Any other setting changes the computation of the adapter. vLLM refuses some of the other settings,
and supports some only in newer versions."""
_PLAIN_INITIALISATIONS = ("gaussian", "eva", "orthogonal")
"""Values of `init_lora_weights` that leave the base model's weights unchanged. The other values change these weights,
and only PEFT can undo the change."""


@dataclass(frozen=True)
class Adapter:
    """An adapter that an engine can serve without merging it into its base model."""

    model: str
    """The adapter's folder or s3:// prefix."""
    base: str
    rank: int


def servable_adapter(model: str, object_store: ObjectStoreConfig) -> Adapter | None:
    """The adapter that a model's name stands for; None for a checkpoint and for an adapter that must be merged.

    An engine serves low-rank matrices of the language model. It silently ignores matrices of the vision tower and the
    projector, and it dies if the adapter has a setting that it does not support.

    Raises:
        ConfigError, OSError, ValueError, KeyError, TypeError: the adapter cannot be read, or is damaged.
    """
    folder = adapter_folder(model, object_store)
    if folder is None:
        return None
    settings = json.loads((folder / ADAPTER_SETTINGS).read_text(encoding="utf-8"))
    initialisation = settings.get("init_lora_weights")
    is_plain = (
        settings.get("peft_type") == "LORA"
        and settings.get("bias", "none") == "none"
        and (not isinstance(initialisation, str) or initialisation in _PLAIN_INITIALISATIONS)
        and 0 < settings["r"] <= RANKS[-1]
        and not any(value for name, value in settings.items() if name not in _PLAIN)
    )
    if not is_plain or not _adapts_language_only(folder):
        return None
    return Adapter(resolve_path(model), base_of_adapter(folder) or "", settings["r"])


def _adapts_language_only(folder: Path) -> bool:
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
    """Models that one engine serves."""

    base: ModelConfig
    adapters: Mapping[str, Adapter | None]
    """The adapter of each model, by the model's name, in the order of the models; None for the base model itself."""

    @classmethod
    def single(cls, name: str, model: ModelConfig) -> EngineGroup:
        """One model, alone in its engine."""
        return cls(model, {name: None})

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the models, in the order of the models."""
        return tuple(self.adapters)

    @property
    def lora_adapters(self) -> dict[str, Adapter]:
        """The adapters that must be passed to the engine when it starts, by the models' names."""
        return {name: adapter for name, adapter in self.adapters.items() if adapter is not None}

    def only(self, names: Iterable[str]) -> EngineGroup:
        """The same engine with only these models."""
        return EngineGroup(self.base, {name: self.adapters[name] for name in names})


Members = list[tuple[str, Adapter | None]]
"""Models of one engine by name, each with its adapter."""


def shared_engines(models: Mapping[str, ModelConfig], object_store: ObjectStoreConfig) -> list[EngineGroup]:
    """Group the models into engines: models that differ only in their adapters share an engine.

    A model that shares its engine with no other is served alone; if it is an adapter, it is merged into its base. A
    model that cannot be read is also served alone, so that no other model fails when it is loaded.
    """
    candidates: dict[str, Members] = {}
    for name, model in models.items():
        if not model.engine.max_adapters or not model.share_engine:
            continue
        try:
            adapter = servable_adapter(model.model, object_store)
            base = model_identity(adapter.base if adapter is not None else model.model, object_store)
        except (ConfigError, OSError, ValueError, KeyError, TypeError):
            continue
        candidates.setdefault(f"{base} {_serving_settings(model)}", []).append((name, adapter))
    groups = [
        EngineGroup(models[members[0][0]].model_copy(update={"model": _base(models, members)}), dict(members))
        for same_base in candidates.values()
        for members in _split(same_base, models[same_base[0][0]].engine.max_adapters)
        if len(members) > 1
    ]
    shared = {name for group in groups for name in group.adapters}
    groups += [EngineGroup.single(name, model) for name, model in models.items() if name not in shared]
    order = list(models)
    return sorted(groups, key=lambda group: order.index(group.names[0]))


def _serving_settings(model: ModelConfig) -> str:
    """The settings that models of one engine must share: all except `model` and those that only students have."""
    return model.model_dump_json(include=set(ModelConfig.model_fields) - {"model"})


def _split(members: Members, max_adapters: int) -> list[Members]:
    """Split members into groups in which every adapter has a slot.

    If adapters took turns in a slot, the answers of the base model would change.
    """
    groups: list[Members] = [[]]
    for name, adapter in members:
        if sum(other is not None for _, other in groups[-1]) == max_adapters:
            groups.append([])
        groups[-1].append((name, adapter))
    return groups


def _base(models: Mapping[str, ModelConfig], members: Members) -> str:
    name, adapter = members[0]
    return adapter.base if adapter is not None else models[name].model
