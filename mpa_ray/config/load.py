"""Load a checked configuration from a YAML file and dotted overrides."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from mpa_ray.config.run import EvaluationRunConfig, RunConfig
from mpa_ray.config.setting_path import setting_path
from mpa_ray.config.settings import Settings
from mpa_ray.config.source import ObjectStoreConfig
from mpa_ray.errors import ConfigError

ConfigT = TypeVar("ConfigT", bound=Settings)


def load_config(path: str, overrides: dict[str, str] | None = None) -> RunConfig:
    """Read a YAML file, apply dotted overrides such as `{"students.0.level.seed": "1"}`, and check the result.

    Raises:
        ConfigError: the file is missing or not YAML, a key is unknown, or a value is out of range.
    """
    return _validated(RunConfig, _tree(path, overrides or {}))


def load_evaluation(path: str, overrides: dict[str, str] | None = None) -> EvaluationRunConfig:
    """Like `load_config`, but a file without source, teacher and students only measures `evaluate.models`.

    Raises:
        ConfigError: as `load_config` does.
    """
    tree = _tree(path, overrides or {})
    is_whole = bool(tree.keys() & {"source", "teacher", "students"})
    return _validated(RunConfig if is_whole else EvaluationRunConfig, tree)


def load_object_store(overrides: dict[str, str]) -> ObjectStoreConfig:
    """Read `--object_store.NAME value` options, for jobs that take a run directory instead of a file.

    Raises:
        ConfigError: there is another setting, or a value is out of range.
    """
    tree: dict[str, Any] = {"object_store": {}}
    for dotted, text in overrides.items():
        if not dotted.startswith("object_store."):
            raise ConfigError(f"--{dotted}", text, "is not an option of this job.", "See --help.")
        _override(tree, dotted, _value(text))
    return _validated(_ObjectStoreOnly, tree).object_store


class _ObjectStoreOnly(Settings):
    object_store: ObjectStoreConfig


def _validated(kind: type[ConfigT], tree: dict[str, Any]) -> ConfigT:
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise _readable(error, kind) from None


def _tree(path: str, overrides: dict[str, str]) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ConfigError("--config", path, f"is not UTF-8 ({error.reason}).", "Save it as UTF-8.") from error
    except OSError as error:
        raise ConfigError("--config", path, f"cannot be read ({error.strerror}).", "Give a YAML file.") from error
    except yaml.YAMLError as error:
        raise ConfigError("--config", path, f"is not YAML ({error}).", "Fix the file.") from error
    if not isinstance(tree, dict):
        raise ConfigError("--config", path, "does not contain a mapping.", "Start from an example in the README.")
    for dotted, text in overrides.items():
        _override(tree, dotted, _value(text))
    return tree


def _value(text: str) -> Any:
    """Parse a value of the command line as YAML; text that is not YAML, such as a path with a `*`, stays text."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _override(tree: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    node: Any = tree
    for depth, key in enumerate(parents):
        try:
            node = node[int(key)] if isinstance(node, list) else node.setdefault(key, {})
        except (ValueError, IndexError, AttributeError):
            where = ".".join(parents[: depth + 1])
            raise ConfigError(f"--{dotted}", value, f"there is no {where}.", "Check the dotted name.") from None
    if isinstance(node, list) and last.isdigit() and int(last) < len(node):
        node[int(last)] = value
    elif isinstance(node, dict):
        node[last] = value
    else:
        raise ConfigError(f"--{dotted}", value, f"{'.'.join(parents)} is not a mapping.", "Check the dotted name.")


def _readable(error: ValidationError, kind: type[Settings]) -> ConfigError:
    first, *others = error.errors()
    problem = {
        "extra_forbidden": "is not a setting.",
        "missing": "is required.",
    }.get(first["type"], first["msg"].removeprefix("Value error, ") + ".")
    value = first["input"] if first["type"] != "missing" else None
    names = ", ".join(setting_path(kind, other["loc"]) for other in others)
    more = f" ({len(others)} more: {names})" if others else ""
    field = setting_path(kind, first["loc"]) or "config"
    return ConfigError(field, value, problem, f"See --help for the settings.{more}")
