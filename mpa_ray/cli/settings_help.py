"""Write the help texts of some settings, or of all settings, class by class."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from mpa_ray.cli.layout import entry, wrapped
from mpa_ray.config import RunConfig
from mpa_ray.config.setting_path import all_settings, branch_name, branches_of

_FIRST_BRANCHES = ("source", "teacher", "students", "annotate", "identify", "answer", "evaluate")
"""The branches that come first in the help of all settings."""


@dataclass(frozen=True)
class SettingGroup:
    """The settings of one class, which may be at several places of the configuration tree."""

    title: str
    """What the class is, in one sentence."""
    kinds: tuple[str, ...]
    """The values of `kind` for which the settings apply; empty if they always apply."""
    paths: list[str] = field(default_factory=list)
    """The dotted names of the branches, such as `teacher` and `students.0`; an empty string for the root."""
    settings: dict[str, FieldInfo] = field(default_factory=dict)
    """The settings by name."""


def setting_groups(root: type[BaseModel] = RunConfig) -> list[SettingGroup]:
    """All settings of a configuration except those that only tests use, in one group per class."""
    groups: dict[type[BaseModel], SettingGroup] = {}
    _add_branch(root, "", groups)
    return list(groups.values())


def all_settings_help(branch: str | None = None) -> Iterator[str]:
    """The lines of the help of all settings, or of the settings of one branch such as `object_store`."""
    yield "settings, in a YAML file or as options (--teacher.num_replicas 4; 0 stands for the first item of a list):"
    for group in setting_groups():
        if branch in (None, *group.paths):
            yield from _group_help(group)


def common_settings_help(names: Iterable[str]) -> Iterator[str]:
    """The lines of the help of some settings, by their dotted names."""
    known = dict(all_settings(RunConfig))
    for name in names:
        yield from entry(f"--{name}", f"{_first_sentence(known[name].description or '')}{_default(known[name])}")


def _group_help(group: SettingGroup) -> Iterator[str]:
    is_root = group.paths == [""]
    where = "the run" if is_root else ", ".join(group.paths)
    yield ""
    yield from wrapped(where + (f", with kind {' or '.join(group.kinds)}" if group.kinds else ""))
    yield from wrapped(group.title, indent="  ")
    for name, setting in group.settings.items():
        description = " ".join((setting.description or "").split())
        yield from entry(f"--{name}" if is_root else f".{name}", f"{description}{_default(setting)}")


def _add_branch(branch: type[BaseModel], path: str, groups: dict[type[BaseModel], SettingGroup]) -> None:
    fields = branch.model_fields
    for owner, names in _owners(branch, is_root=not path):
        group = groups.setdefault(owner, SettingGroup(_first_sentence(owner.__doc__ or ""), _kinds(owner)))
        if path not in group.paths:
            group.paths.append(path)
        group.settings.update({name: fields[name] for name in names if name != "kind" or not group.kinds})
    first = [name for name in _FIRST_BRANCHES if name in fields] if not path else []
    for name in dict.fromkeys([*first, *fields]):
        below = branch_name(name, fields[name])
        for child in branches_of(fields[name].annotation):
            _add_branch(child, f"{path}.{below}" if path else below, groups)


def _owners(branch: type[BaseModel], is_root: bool) -> Iterator[tuple[type[BaseModel], list[str]]]:
    """The classes that define a branch's settings, the base classes first, each with the names that it defines."""
    if is_root:
        yield branch, list(branch.model_fields)
        return
    for owner in reversed(branch.__mro__):
        if issubclass(owner, BaseModel):
            names = [name for name in owner.__annotations__ if name in owner.model_fields]
            if names:
                yield owner, names


def _kinds(owner: type[BaseModel]) -> tuple[str, ...]:
    """The values of `kind` that choose a class; empty for a class that is not one of several alternatives."""
    kind = owner.model_fields.get("kind")
    # A `kind` that chooses among classes has no description.
    return get_args(kind.annotation) if kind is not None and kind.description is None else ()


def _default(setting: FieldInfo) -> str:
    """The default in parentheses; for a branch, only the values that differ from the defaults of its class.

    Empty if the default is None, since the description of the setting then says what None means.
    """
    if setting.is_required():
        return " (required)"
    default: Any = setting.default
    if isinstance(default, BaseModel):
        default = default.model_dump(mode="json", exclude_defaults=True)
    if default is None or default in ({}, [], ()):
        return ""
    return f" (default {default if isinstance(default, str) else json.dumps(default)})"


def _first_sentence(text: str) -> str:
    words = " ".join(text.split())
    sentence, end, _ = words.partition(". ")
    return f"{sentence}." if end else words
