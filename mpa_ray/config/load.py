"""From a YAML file and dotted overrides to a checked configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from mpa_ray.config.engines import ENGINE_KINDS
from mpa_ray.config.run import EvaluationRunConfig, RunConfig
from mpa_ray.config.settings import Settings
from mpa_ray.config.source import ObjectStoreConfig
from mpa_ray.errors import ConfigError

ConfigT = TypeVar("ConfigT", bound=Settings)


def load_config(path: str, overrides: dict[str, str] | None = None) -> RunConfig:
    """Read a YAML file, apply dotted overrides such as `{"students.0.level.seed": "1"}`, and check the result.

    Raises:
        ConfigError: the file is missing or not YAML, a key is unknown, or a value is out of its range.
    """
    return _validated(RunConfig, _tree(path, overrides or {}))


def load_evaluation(path: str, overrides: dict[str, str] | None = None) -> EvaluationRunConfig:
    """The same, also for a file without source, teacher and students: then there are only `evaluate.models`."""
    tree = _tree(path, overrides or {})
    is_whole = bool(tree.keys() & {"source", "teacher", "students"})
    return _validated(RunConfig if is_whole else EvaluationRunConfig, tree)


def load_object_store(overrides: dict[str, str]) -> ObjectStoreConfig:
    """The settings of `--object_store.NAME value` alone, for jobs that are given a run directory and no file.

    Raises:
        ConfigError: there is another setting, or a value is out of its range.
    """
    tree: dict[str, Any] = {"object_store": {}}
    for dotted, text in overrides.items():
        if not dotted.startswith("object_store."):
            raise ConfigError(f"--{dotted}", text, "is no option of this job.", "See --help.")
        _override(tree, dotted, _value(text))
    return _validated(_ObjectStoreAlone, tree).object_store


class _ObjectStoreAlone(Settings):
    object_store: ObjectStoreConfig


def _validated(kind: type[ConfigT], tree: dict[str, Any]) -> ConfigT:
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise _readable(error) from None


def _tree(path: str, overrides: dict[str, str]) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ConfigError("--config", path, f"is not UTF-8 ({error.reason}).", "Save it as UTF-8.") from error
    except OSError as error:
        raise ConfigError("--config", path, f"cannot be read ({error.strerror}).", "Give a YAML file.") from error
    except yaml.YAMLError as error:
        raise ConfigError("--config", path, f"is not YAML ({error}).", "Mend the file.") from error
    if not isinstance(tree, dict):
        raise ConfigError("--config", path, "does not hold a mapping.", "Start from configs in the README.")
    for dotted, text in overrides.items():
        _override(tree, dotted, _value(text))
    return tree


def _value(text: str) -> Any:
    """A value of the command line as YAML reads it, or as it is where it is no YAML, such as a path with a `*`."""
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


def _readable(error: ValidationError) -> ConfigError:
    first, *others = error.errors()
    # A discriminated union puts the tag of the chosen variant into the location; it is no key of the file.
    where = ".".join(str(part) for part in first["loc"] if part not in (*ENGINE_KINDS, "lora", "full"))
    problem = {
        "extra_forbidden": "is not a setting.",
        "missing": "is required.",
    }.get(first["type"], first["msg"].removeprefix("Value error, ") + ".")
    value = first["input"] if first["type"] != "missing" else None
    more = f" ({len(others)} more: {', '.join('.'.join(map(str, e['loc'])) for e in others)})" if others else ""
    return ConfigError(where or "config", value, problem, f"See --help for the settings.{more}")
