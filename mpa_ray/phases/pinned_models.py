"""Models of the hub at fixed commits, so that all nodes and engines of a command load the same files."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from mpa_ray.config import EvaluationRunConfig, ModelConfig, RunConfig, resolve_path
from mpa_ray.errors import ConfigError
from mpa_ray.models.hub import is_hub_name, process_hub, split_revision

ConfigT = TypeVar("ConfigT", bound=EvaluationRunConfig)
ModelT = TypeVar("ModelT", bound=ModelConfig)


def with_pinned_models(config: ConfigT) -> ConfigT:
    """Return the settings with each hub name in the form `owner/name@COMMIT`.

    A hub name is left unchanged if neither the hub nor its cache has the model.
    """
    changes: dict[str, object] = {}
    if config.evaluate is not None:
        models = [_pinned(model) for model in config.evaluate.models]
        changes["evaluate"] = config.evaluate.model_copy(update={"models": models})
    if isinstance(config, RunConfig):
        changes["teacher"] = _pinned(config.teacher)
        changes["students"] = [_pinned(student) for student in config.students]
    return config.model_copy(update=changes)


def _pinned(config: ModelT) -> ModelT:
    model = config.model
    if not config.engine.has_checkpoint or not is_hub_name(model) or Path(resolve_path(model)).is_dir():
        return config
    try:
        commit = process_hub().commit(model)
    except ConfigError:
        return config
    return config.model_copy(update={"model": f"{split_revision(model)[0]}@{commit}"})
