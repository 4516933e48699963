"""Load a checked configuration from a YAML file and dotted overrides."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from mpa_ray.config.regular_file import read_regular_file
from mpa_ray.config.run import EvaluationRunConfig, RunConfig
from mpa_ray.config.setting_path import setting_path, settings_at, similar_settings
from mpa_ray.config.settings import Settings
from mpa_ray.config.source import ObjectStoreConfig
from mpa_ray.config.words import Tree, Word, parsed, read_yaml, unstorable_texts, with_types
from mpa_ray.errors import ConfigError, did_you_mean

ALL_SETTINGS = "`mpa-ray --help-all` lists all settings."
_STARTER = "`mpa-ray init > my.yaml` writes one to start from."
_MAX_SUGGESTIONS = 2
_NO_MAPPING = ("model_type", "model_attributes_type", "dict_type")
"""The types of Pydantic errors for a plain value where a mapping is required."""
_CREDENTIALS = re.compile(r"^(\w+://)?.*@", re.DOTALL)
_NO_LIST = ("list_type", "tuple_type")
"""The types of Pydantic errors for another value where a list is required."""

ConfigT = TypeVar("ConfigT", bound=Settings)


def load_config(path: str | Path, overrides: Mapping[str, Any] | None = None) -> RunConfig:
    """Read the configuration of a run from a YAML file.

    Args:
        path: The file.
        overrides: Settings that replace those of the file, by their dotted names, such as `{"students.0.level.seed":
            1}`. A string is read as on the command line: it stays unchanged where the setting is text, and is parsed as
            YAML elsewhere.

    Raises:
        ConfigError: the file is missing or not YAML, a key is unknown, or a value is out of range.
    """
    return _validated(RunConfig, _tree(path, overrides or {}))


def load_evaluation(path: str | Path, overrides: Mapping[str, Any] | None = None) -> EvaluationRunConfig:
    """Like `load_config`, but the file may lack source, teacher and students: the run then only measures models.

    Raises:
        ConfigError: for the same reasons as in `load_config`.
    """
    return parse_config(_tree(path, overrides or {}))


def parse_config(tree: Tree) -> EvaluationRunConfig:
    """Validate a configuration tree. The result is a `RunConfig` if the tree has source, teacher or students.

    Raises:
        ConfigError: a key is unknown, or a value is out of range.
    """
    is_whole = bool(tree.keys() & {"source", "teacher", "students"})
    return _validated(RunConfig if is_whole else EvaluationRunConfig, tree)


def load_object_store(overrides: Mapping[str, str]) -> ObjectStoreConfig:
    """Read `--object_store.NAME value` options, for jobs that take a run directory instead of a file.

    Raises:
        ConfigError: an option is not a setting of `object_store`, or a value is out of range.
    """
    tree: Tree = {"object_store": {}}
    for dotted, text in overrides.items():
        if not dotted.startswith("object_store."):
            names = [f"--object_store.{name}" for name in ObjectStoreConfig.model_fields]
            remedy = did_you_mean(f"--{dotted}", names) or "This command takes only --object_store.NAME settings."
            raise ConfigError(f"--{dotted}", text, "is not an option of this command.", remedy)
        _override(tree, dotted, Word(text))
    return _validated(_ObjectStoreOnly, tree).object_store


class _ObjectStoreOnly(Settings):
    object_store: ObjectStoreConfig


def _validated(kind: type[ConfigT], tree: Tree) -> ConfigT:
    for path, text in unstorable_texts(tree):
        raise ConfigError(
            path or "config", text, "is not UTF-8.", "Rename the file or folder, or use a link with another name."
        )
    try:
        return kind.model_validate(with_types(tree, kind))
    except ValidationError as error:
        raise _readable(error, kind) from None


def _tree(path: str | Path, overrides: Mapping[str, Any]) -> Tree:
    file = str(path)
    try:
        tree = read_yaml(read_regular_file(Path(path).expanduser()).decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ConfigError("--config", file, f"is not UTF-8 ({error.reason}).", "Save it as UTF-8.") from error
    except OSError as error:
        problem = f"cannot be read ({error.strerror})."
        raise ConfigError("--config", file, problem, f"Give a YAML file; {_STARTER}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError("--config", file, f"is not YAML ({_first_problem(error)}).", "Fix the file.") from error
    if not isinstance(tree, dict):
        raise ConfigError("--config", file, "does not contain a mapping.", _STARTER)
    for dotted, value in overrides.items():
        _override(tree, dotted, Word(value) if isinstance(value, str) else value)
    return tree


def _first_problem(error: Exception) -> str:
    """The problem in one line. PyYAML's own message has up to seven lines."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return " ".join(str(error).split())
    mark = error.problem_mark
    return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}"


def _override(tree: Tree, dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    node: Any = tree
    for depth, (key, following) in enumerate(zip(parents, [*parents[1:], last], strict=False)):
        try:
            node = node[int(key)] if isinstance(node, list) else _branch(node, key, following)
        except (ValueError, IndexError, AttributeError):
            where = ".".join(parents[: depth + 1])
            raise ConfigError(f"--{dotted}", value, f"there is no {where}.", "Check the dotted name.") from None
    if isinstance(node, list) and last.isdecimal() and int(last) < len(node):
        node[int(last)] = value
    elif isinstance(node, dict):
        node[last] = value
    else:
        raise ConfigError(f"--{dotted}", value, f"{'.'.join(parents)} is not a mapping.", "Check the dotted name.")


def _branch(node: Tree, key: str, following: str) -> Any:
    """The branch below a key. If the key is missing or has no value, an empty branch is added."""
    if node.get(key) is None:
        node[key] = [{}] if following == "0" else {}
    elif isinstance(node[key], Word):
        # An earlier option may have set the whole branch, as a YAML mapping or list.
        node[key] = parsed(node[key])
    return node[key]


def _readable(error: ValidationError, kind: type[Settings]) -> ConfigError:
    first, *others = error.errors()
    problem = {
        "extra_forbidden": "is not a setting.",
        "missing": "is required.",
        **dict.fromkeys(_NO_MAPPING, "is not a mapping of settings."),
        **dict.fromkeys(_NO_LIST, "is not a list."),
        "union_tag_not_found": "has no `kind`.",
    }.get(first["type"], first["msg"].removeprefix("Value error, ") + ".")
    field = setting_path(kind, first["loc"]) or "config"
    value = first["input"] if first["type"] != "missing" else None
    if field.endswith("endpoint_url") and isinstance(value, str):
        value = _CREDENTIALS.sub(r"\1***@", value)
    if first["type"] == "value_error" and isinstance(value, dict):
        field, value, problem = _of_branch(field, value, problem)
    names = ", ".join(setting_path(kind, other["loc"]) for other in others)
    more = f" ({len(others)} more: {names})" if others else ""
    return ConfigError(field, value, problem, f"{_suggestion(first, kind)}{ALL_SETTINGS}{more}")


def _of_branch(branch: str, content: Tree, problem: str) -> tuple[str, object, str]:
    """Split an error about several settings of one branch into field, value and problem.

    The error's text is `NAME: problem` or `NAME VALUE problem`.
    """
    parts = re.fullmatch(r"(\w+)(?:: | (\S+) )(.*)", problem, re.DOTALL)
    if parts is None:
        return branch, _Brief(content), problem
    name, value, rest = parts.groups()
    field = name if branch == "config" else f"{branch}.{name}"
    return field, content.get(name, value) if value else _Brief(content.get(name)), rest


class _Brief:
    """A value in a message; a list or mapping is shown as its number of entries."""

    def __init__(self, content: object) -> None:
        self._content = content

    def __repr__(self) -> str:
        return f"[{len(self._content)} entries]" if isinstance(self._content, list | dict) else repr(self._content)


def _suggestion(error: Mapping[str, Any], kind: type[Settings]) -> str:
    """A hint at what the user may have meant, followed by a space; empty if there is no hint."""
    if error["type"] == "extra_forbidden":
        similar = similar_settings(kind, error["loc"])[:_MAX_SUGGESTIONS]
        return f"Did you mean {' or '.join(similar)}? " if similar else ""
    if error["type"] in _NO_MAPPING and (names := settings_at(kind, error["loc"])):
        return f"Write its settings below it, such as {setting_path(kind, error['loc'])}.{names[0]}. "
    if error["type"] in ("literal_error", "union_tag_invalid"):
        context = error.get("ctx", {})
        choices = re.findall(r"'([^']*)'", str(context.get("expected", context.get("expected_tags", ""))))
        suggestion = did_you_mean(str(context.get("tag", error["input"])), choices)
        return f"{suggestion} " if suggestion else ""
    if error["type"] in _NO_LIST:
        value = error["input"]
        return f"Write [{value}]. " if isinstance(value, str | int | float) else "Begin each item with `- `. "
    return ""
