"""The dotted names of settings, as users write them, and the types of settings."""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

_CUTOFF = 0.7
"""If two names are at least this similar, one may be a misspelling of the other."""


def setting_path(model: type[BaseModel], location: Iterable[str | int]) -> str:
    """The dotted name of the setting at a location in a model, such as `identify.matcher.tolerance`.

    In Pydantic, the location of this example is `identify`, `matcher`, `numeric`, `tolerance`: it also contains
    `numeric`, the tag of the chosen variant of a discriminated union. Such a tag is not a key of the file, so the
    dotted name leaves it out.
    """
    names = []
    node = SettingType(model)
    for part in location:
        variant = node.variant(part)
        if variant is None:
            names.append(str(part))
        node = variant or node.child(part)
    return ".".join(names)


def similar_settings(model: type[BaseModel], location: Sequence[str | int]) -> list[str]:
    """The dotted names that the user may have meant by an unknown setting at this location, the most similar first.

    The list begins with the settings of other branches that have the same name. Settings of the same branch with a
    similar name follow, and then branches with the same name. If there are none of these, the list has the settings of
    other branches with a similar name.
    """
    *parents, last = location
    branch, word = setting_path(model, parents), str(last)
    similar = difflib.get_close_matches(word, settings_at(model, parents), n=2, cutoff=_CUTOFF)
    siblings = [f"{branch}.{name}" if branch else name for name in similar]
    names = sorted((name for name, _ in all_settings(model)), key=lambda name: name.count("."))
    branches = {name for name in names if any(other.startswith(f"{name}.") for other in names)}
    same = [name for name in names if name.rpartition(".")[2] == word]
    leaves = [name for name in same if name not in branches]
    meant = list(dict.fromkeys([*leaves, *siblings, *same]))
    if meant:
        return meant
    last_names = list(dict.fromkeys(name.rpartition(".")[2] for name in names))
    close = difflib.get_close_matches(word, last_names, n=2, cutoff=_CUTOFF)
    return [name for choice in close for name in names if name.rpartition(".")[2] == choice]


def all_settings(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yield the dotted name and the field of all settings below a model, except those that only tests use.

    In a dotted name, 0 stands for the items of a list.
    """
    for field_name, field in model.model_fields.items():
        name = field.alias or field_name
        yield f"{prefix}{name}", field
        for branch in branches_of(field.annotation):
            yield from all_settings(branch, f"{prefix}{branch_name(name, field)}.")


def branch_name(name: str, field: FieldInfo) -> str:
    """The name of a setting as the prefix of the settings below it: `students.0` for the list `students`, and the
    unchanged name for any other setting."""
    return f"{name}.0" if get_origin(field.annotation) is list else name


def branches_of(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the classes of the branches that a setting of this type may hold, except those that only tests use."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if not getattr(annotation, "for_tests", False):
            yield annotation
    elif get_origin(annotation) in (Union, types.UnionType, list) or hasattr(annotation, "__metadata__"):
        for inner in get_args(annotation):
            yield from branches_of(inner)


def settings_at(model: type[BaseModel], location: Iterable[str | int]) -> list[str]:
    """The names of the settings in the branch at a location; empty if there is no branch."""
    node = SettingType(model)
    for part in location:
        node = node.variant(part) or node.child(part)
    branches = [node.annotation] if node.discriminator is None else get_args(node.annotation)
    known = [branch for branch in branches if isinstance(branch, type) and issubclass(branch, BaseModel)]
    fields = [(name, field) for branch in known for name, field in branch.model_fields.items()]
    return list(dict.fromkeys(field.alias or name for name, field in fields))


@dataclass(frozen=True)
class SettingType:
    """The type of a value in the configuration tree."""

    annotation: Any
    discriminator: str | None = None
    """The field that chooses the variant, if the annotation is a discriminated union."""
    may_be_none: bool = False

    @classmethod
    def of(cls, annotation: Any, discriminator: object = None, may_be_none: bool = False) -> SettingType:
        """The type of an annotation, without `Annotated` and `| None`."""
        if hasattr(annotation, "__metadata__"):
            fields = [item for item in annotation.__metadata__ if isinstance(item, FieldInfo)]
            named = next((field.discriminator for field in fields if field.discriminator), discriminator)
            return cls.of(annotation.__origin__, named, may_be_none)
        members = [member for member in get_args(annotation) if member is not types.NoneType]
        if _is_union(annotation) and len(members) == 1:
            return cls.of(members[0], discriminator, True)
        return cls(annotation, discriminator if isinstance(discriminator, str) else None, may_be_none)

    @property
    def is_text(self) -> bool:
        """Whether the setting is text: any text, or one of several fixed words."""
        if get_origin(self.annotation) is Literal:
            return all(isinstance(choice, str) for choice in get_args(self.annotation))
        return self.annotation is str

    def variant(self, tag: str | int) -> SettingType | None:
        """The variant of a discriminated union with this tag; None if there is no such variant or no such union."""
        if self.discriminator is None:
            return None
        members = get_args(self.annotation)
        chosen = [m for m in members if tag in get_args(m.model_fields[self.discriminator].annotation)]
        return SettingType(chosen[0]) if chosen else None

    def child(self, part: str | int) -> SettingType:
        """The type of a field of a model, or of the items of a list or mapping.

        If there is no such field, the annotation of the result is None. In a union, the field is that of the first
        variant that has such a field.
        """
        if isinstance(self.annotation, type) and issubclass(self.annotation, BaseModel):
            fields = self.annotation.model_fields.items()
            field = next((field for name, field in fields if part in (name, field.alias)), None)
            return SettingType.of(field.annotation, field.discriminator) if field is not None else SettingType(None)
        items = [item for item in get_args(self.annotation) if item is not Ellipsis]
        if _is_union(self.annotation):
            children = [SettingType.of(item).child(part) for item in items]
            return next((child for child in children if child.annotation is not None), SettingType(None))
        return SettingType.of(items[-1]) if items else SettingType(None)


def _is_union(annotation: Any) -> bool:
    return get_origin(annotation) in (Union, types.UnionType)
