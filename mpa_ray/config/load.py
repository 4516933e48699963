"""Load a configuration from a YAML file and from overrides with dotted names, and validate it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path, PurePath
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from mpa_ray.config.problems import problem_of, suggestion_for
from mpa_ray.config.regular_file import read_regular_file
from mpa_ray.config.run import EvaluationRunConfig, RunConfig
from mpa_ray.config.setting_path import setting_path
from mpa_ray.config.setting_values import Tree, Word, parsed, read_yaml, unstorable_texts, with_types, yaml_problem
from mpa_ray.config.settings import Settings
from mpa_ray.config.source import ObjectStoreConfig
from mpa_ray.errors import ConfigError, did_you_mean

ALL_SETTINGS = "`mpa-ray --help-all` lists all settings."
_STARTER = "`mpa-ray init > my.yaml` writes one to start from."
_OF_WHOLE_RUN = ("source", "teacher", "students")
"""Settings of a run that aligns students. A run that only measures models has none of them."""
_CUTOFF = 0.8
_CREDENTIALS = re.compile(r"^(\w+://)?.*@", re.DOTALL)

ConfigT = TypeVar("ConfigT", bound=Settings)


def load_config(path: str | Path, overrides: Mapping[str, Any] | None = None) -> RunConfig:
    """Read the configuration of a run from a YAML file.

    Args:
        path: The file.
        overrides: Settings that replace those of the file, by their dotted names, such as `{"students.0.level.seed":
            1}`. A string is read as on the command line: if the setting is text, the string stays unchanged; otherwise,
            it is parsed as YAML.

    Raises:
        ConfigError: the file is missing or not YAML, a key is unknown, or a value is not valid.
    """
    tree = _tree(path, {} if overrides is None else overrides)
    if "evaluate" in tree and not _is_whole(tree):
        raise ConfigError(
            "--config",
            str(path),
            "has no source, teacher and students, so it only measures models.",
            "Use mpa-ray evaluate, or add them.",
        )
    return _validated(RunConfig, tree)


def load_evaluation(path: str | Path, overrides: Mapping[str, Any] | None = None) -> EvaluationRunConfig:
    """Like `load_config`, but the file may lack source, teacher and students. Without them, the run only measures
    models.

    Raises:
        ConfigError: for the same reasons as in `load_config`.
    """
    return parse_config(_tree(path, {} if overrides is None else overrides))


def parse_config(tree: Tree) -> EvaluationRunConfig:
    """Validate a configuration tree. The result is a `RunConfig` if the tree has source, teacher or students.

    Raises:
        ConfigError: a key is unknown, or a value is out of range.
    """
    return _validated(RunConfig if _is_whole(tree) else EvaluationRunConfig, tree)


def _is_whole(tree: Tree) -> bool:
    return any(get_close_matches(str(key), _OF_WHOLE_RUN, cutoff=_CUTOFF) for key in tree)


def load_object_store(overrides: Mapping[str, str]) -> ObjectStoreConfig:
    """Read `--object_store.NAME value` options, for commands that take a run directory instead of a configuration file.

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
    if not isinstance(path, str | PurePath):
        raise ConfigError("--config", path, f"is a {type(path).__name__}, not a path.", f"Give a YAML file; {_STARTER}")
    if not isinstance(overrides, Mapping):
        remedy = 'Pass a dict, such as {"source.limit": 5}.'
        raise ConfigError("overrides", overrides, f"is a {type(overrides).__name__}, not a mapping.", remedy)
    file = str(path)
    try:
        tree = read_yaml(read_regular_file(Path(os.path.expanduser(path))).decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ConfigError("--config", file, f"is not UTF-8 ({error.reason}).", "Save it as UTF-8.") from error
    except OSError as error:
        problem = f"cannot be read ({error.strerror})."
        raise ConfigError("--config", file, problem, f"Give a YAML file; {_STARTER}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError("--config", file, f"is not YAML ({yaml_problem(error)}).", "Fix the file.") from error
    if not isinstance(tree, dict):
        raise ConfigError("--config", file, "does not contain a mapping.", _STARTER)
    for dotted, value in overrides.items():
        _override(tree, str(dotted), Word(value) if isinstance(value, str) else value)
    return tree


def _override(tree: Tree, dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    node: Any = tree
    for depth, (key, following) in enumerate(zip(parents, [*parents[1:], last], strict=False)):
        if isinstance(node, list):
            node = node[_index(node, parents[:depth], [key, *parents[depth + 1 :], last], value)]
        elif isinstance(node, dict):
            node = _branch(node, key, following)
        else:
            where = ".".join(parents[: depth + 1])
            raise ConfigError(f"--{dotted}", value, f"there is no {where}.", "Check the dotted name.")
    if isinstance(node, list):
        node[_index(node, parents, [last], value)] = value
    elif isinstance(node, dict):
        node[last] = value
    else:
        raise ConfigError(f"--{dotted}", value, f"{'.'.join(parents)} is not a mapping.", "Check the dotted name.")


def _index(items: list[Any], where: Sequence[str], rest: Sequence[str], value: Any) -> int:
    """Return the list index that an override names.

    Args:
        items: The list.
        where: The names that lead to the list.
        rest: The names after them; the first should be the index.
        value: The override's value, for the error.

    Raises:
        ConfigError: the first name in `rest` is not an index of the list.
    """
    branch, word = ".".join(where), rest[0]
    if word.isdecimal() and int(word) < len(items):
        return int(word)
    named = (n for n, item in enumerate(items) if isinstance(item, dict) and item.get("name") == word)
    number = next(named, 0)
    if word.lstrip("-").isdecimal():
        problem = f"there is no {branch}.{word}."
        entries = "1 entry" if len(items) == 1 else f"{len(items)} entries"
        remedy = f"The list {branch} has {entries}, and {branch}.0 is the first."
    else:
        problem = f"{branch} is a list, and the number of an entry is missing."
        is_name = bool(items) and isinstance(items[number], dict) and items[number].get("name") == word
        remedy = f"Write --{'.'.join([branch, str(number), *rest[is_name:]])}."
    raise ConfigError(f"--{'.'.join([branch, *rest])}", value, problem, remedy)


def _branch(node: Tree, key: str, following: str) -> Any:
    """Return the branch below a key. If the key is missing or has no value, add an empty branch."""
    if node.get(key) is None:
        node[key] = [{}] if following == "0" else {}
    elif isinstance(node[key], Word):
        # An earlier option may have set the whole branch to a YAML mapping or list.
        node[key] = parsed(node[key])
    return node[key]


def _readable(error: ValidationError, kind: type[Settings]) -> ConfigError:
    # Report unknown names first: a misspelled name is often the reason why a required setting is missing.
    first, *others = sorted(error.errors(), key=lambda item: item["type"] != "extra_forbidden")
    problem = problem_of(first)
    field = setting_path(kind, first["loc"]) or "config"
    value = first["input"] if first["type"] != "missing" else None
    if field.endswith("endpoint_url") and isinstance(value, str):
        value = _CREDENTIALS.sub(r"\1***@", value)
    if first["type"] == "value_error" and isinstance(value, dict):
        field, value, problem = _of_branch(field, value, problem)
    names = ", ".join(setting_path(kind, other["loc"]) for other in others)
    more = f" ({len(others)} more: {names})" if others else ""
    return ConfigError(field, value, problem, f"{suggestion_for(first, kind)}{ALL_SETTINGS}{more}")


def _of_branch(branch: str, content: Tree, problem: str) -> tuple[str, object, str]:
    """Split the text of an error that a branch's validator raised into field, value and problem.

    The text is `NAME: problem` or `NAME VALUE problem`; any other text is the problem of the whole branch. NAME may be
    a dotted name below the branch.
    """
    parts = re.fullmatch(r"(\w[\w.]*)(?:: | (\S+) )(.*)", problem, re.DOTALL)
    if parts is None:
        return branch, _Brief(content), problem
    name, value, rest = parts.groups()
    field = name if branch == "config" else f"{branch}.{name}"
    return field, content.get(name, value) if value else _Brief(_value_at(content, name)), rest


def _value_at(content: Any, dotted: str) -> Any:
    """The value of a setting below a branch; None if it is not set."""
    for name in dotted.split("."):
        if isinstance(content, list) and name.isdecimal():
            content = content[int(name)]
        else:
            content = content.get(name) if isinstance(content, dict) else None
    return content


class _Brief:
    """A value in an error message. For a list or mapping, the message shows only the number of entries."""

    def __init__(self, content: object) -> None:
        self._content = content

    def __repr__(self) -> str:
        return f"[{len(self._content)} entries]" if isinstance(self._content, list | dict) else repr(self._content)
