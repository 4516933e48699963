"""Names a setting as it is written in a file, from the location of a validation error."""

from __future__ import annotations

import types
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo


def setting_path(model: type[BaseModel], location: Iterable[str | int]) -> str:
    """The dotted name of the setting at a location in a model, such as `identify.matcher.tolerance`.

    Pydantic's locations also contain the tag of the variant that a discriminated union has chosen, here `numeric`. The
    tag is no key of the file, so it is left out.
    """
    names = []
    node = _Node(model)
    for part in location:
        variant = node.variant(part)
        if variant is None:
            names.append(str(part))
        node = variant or node.child(part)
    return ".".join(names)


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
        """The variant of a discriminated union with this tag; None if the node is no discriminated union."""
        if self.discriminator is None:
            return None
        members = get_args(self.annotation)
        chosen = [m for m in members if tag in get_args(m.model_fields[self.discriminator].annotation)]
        return _Node(chosen[0]) if chosen else None

    def child(self, part: str | int) -> _Node:
        """The value of a field, or an item of a list or mapping; of an unknown type if there is no such field."""
        if isinstance(self.annotation, type) and issubclass(self.annotation, BaseModel):
            fields = self.annotation.model_fields.items()
            field = next((field for name, field in fields if part in (name, field.alias)), None)
            return _Node.of(field.annotation, field.discriminator) if field is not None else _Node(None)
        items = [item for item in get_args(self.annotation) if item is not Ellipsis]
        return _Node.of(items[-1]) if items else _Node(None)
