"""The names of settings as they are written in a file: of the location of an error, and of the whole tree."""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo


def setting_path(model: type[BaseModel], location: Iterable[str | int]) -> str:
    """The dotted name of the setting at a location in a model, such as `identify.matcher.tolerance`.

    Pydantic's locations also contain the tag of the variant that a discriminated union has chosen, here `numeric`. The
    tag is not a key of the file, so it is left out.
    """
    names = []
    node = _Node(model)
    for part in location:
        variant = node.variant(part)
        if variant is None:
            names.append(str(part))
        node = variant or node.child(part)
    return ".".join(names)


def similar_settings(model: type[BaseModel], location: Sequence[str | int]) -> list[str]:
    """The dotted names that someone who wrote an unknown setting at this location may have meant, the best first.

    They are settings of the same branch with a similar name, otherwise settings elsewhere with the same name.
    """
    *parents, last = location
    branch = setting_path(model, parents)
    siblings = difflib.get_close_matches(str(last), settings_at(model, parents), n=2, cutoff=0.7)
    if siblings:
        return [f"{branch}.{name}" if branch else name for name in siblings]
    return [name for name, _ in all_settings(model) if name.rpartition(".")[2] == last]


def all_settings(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """All settings below a model by their dotted names, with 0 for an item of a list; without those of tests."""
    for name, field in model.model_fields.items():
        yield f"{prefix}{name}", field
        for branch in branches_of(field.annotation):
            yield from all_settings(branch, f"{prefix}{branch_name(name, field)}.")


def branch_name(name: str, field: FieldInfo) -> str:
    """The name of a setting as the parent of further settings: `students.0` for a list, otherwise its own name."""
    return f"{name}.0" if get_origin(field.annotation) is list else name


def branches_of(annotation: Any) -> Iterator[type[BaseModel]]:
    """The branches of the tree that a setting of this type may hold; without those that only tests use."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if not getattr(annotation, "for_tests", False):
            yield annotation
    elif get_origin(annotation) in (Union, types.UnionType, list) or hasattr(annotation, "__metadata__"):
        for inner in get_args(annotation):
            yield from branches_of(inner)


def settings_at(model: type[BaseModel], location: Iterable[str | int]) -> list[str]:
    """The names of the settings in the branch at a location; empty if there is no branch."""
    node = _Node(model)
    for part in location:
        node = node.variant(part) or node.child(part)
    branches = [node.annotation] if node.discriminator is None else get_args(node.annotation)
    known = [branch for branch in branches if isinstance(branch, type) and issubclass(branch, BaseModel)]
    return list(dict.fromkeys(name for branch in known for name in branch.model_fields))


@dataclass(frozen=True)
class _Node:
    """The type of a value in the configuration tree."""

    annotation: Any
    discriminator: str | None = None
    """The field that chooses the variant, if the annotation is a discriminated union."""

    @classmethod
    def of(cls, annotation: Any, discriminator: object = None) -> _Node:
        """The node of an annotation, without `Annotated` and `| None`, which add nothing to a location."""
        if hasattr(annotation, "__metadata__"):
            fields = [item for item in annotation.__metadata__ if isinstance(item, FieldInfo)]
            named = next((field.discriminator for field in fields if field.discriminator), discriminator)
            return cls.of(annotation.__origin__, named)
        members = [member for member in get_args(annotation) if member is not types.NoneType]
        if get_origin(annotation) in (Union, types.UnionType) and len(members) == 1:
            return cls.of(members[0], discriminator)
        return cls(annotation, discriminator if isinstance(discriminator, str) else None)

    def variant(self, tag: str | int) -> _Node | None:
        """The variant of a discriminated union with this tag; None if the node is not a discriminated union."""
        if self.discriminator is None:
            return None
        members = get_args(self.annotation)
        chosen = [m for m in members if tag in get_args(m.model_fields[self.discriminator].annotation)]
        return _Node(chosen[0]) if chosen else None

    def child(self, part: str | int) -> _Node:
        """The node of a field, or of the items of a list or mapping; without a type if there is no such field."""
        if isinstance(self.annotation, type) and issubclass(self.annotation, BaseModel):
            fields = self.annotation.model_fields.items()
            field = next((field for name, field in fields if part in (name, field.alias)), None)
            return _Node.of(field.annotation, field.discriminator) if field is not None else _Node(None)
        items = [item for item in get_args(self.annotation) if item is not Ellipsis]
        return _Node.of(items[-1]) if items else _Node(None)
