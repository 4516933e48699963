"""Columns of tables that hold or name images: the column types that can be read, and the content of the cells."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa

from mpa_ray.corpus.sources.embedded import embedded_content, is_embedded
from mpa_ray.errors import ConfigError
from mpa_ray.imaging.decode import ImageProblem
from mpa_ray.records import Reason

CellKind = Literal["bytes", "text", "struct"]
"""What a cell holds: a file's bytes; text, which is a URI or base64; or Hugging Face's struct of `bytes` and `path`."""

_ITEM = re.compile(r"(?P<column>.+)\[(?P<item>\d+)\]", re.DOTALL)
_MAX_TYPE_LENGTH = 120


@dataclass(frozen=True)
class ImageColumn:
    """The column of a table that holds or names images."""

    name: str
    item: int | None
    """The index of the item to take from the list in each cell; None if the cells are not lists."""
    kind: CellKind

    @classmethod
    def of(cls, schema: pa.Schema, setting: str, where: str) -> ImageColumn:
        """Return the column that `source.image_column` names. The table must have this column.

        Raises:
            ConfigError: a column of this type cannot hold or name images.
        """
        column = cls.find(schema, setting)
        if column is not None:
            return column
        kind = _plain_type(schema.field(split_item(setting, schema.names)[0]).type)
        first = f"{setting}[0]"
        remedy = "Choose a column with bytes, URIs, base64, or a struct of `bytes` and `path`."
        if cls.find(schema, first) is not None:
            remedy = f"To take one image of each list, set source.image_column to {first}."
        raise ConfigError("source.image_column", setting, f"has type {_short(kind)} in {where}.", remedy)

    @classmethod
    def find(cls, schema: pa.Schema, setting: str) -> ImageColumn | None:
        """Return the column that a setting names; None if there is no such column that can hold or name images."""
        name, item = split_item(setting, schema.names)
        if name not in schema.names:
            return None
        kind = _plain_type(schema.field(name).type)
        cells = _item_type(kind) if item is not None else kind
        kind_of_cells = None if cells is None else cell_kind(cells)
        return None if kind_of_cells is None else cls(name, item, kind_of_cells)


def split_item(setting: str, names: Iterable[str]) -> tuple[str, int | None]:
    """Split `images[0]` into the column `images` and the item 0. The item is None if the setting is a column's name."""
    match = _ITEM.fullmatch(setting)
    if match is None or setting in names or match["column"] not in names:
        return setting, None
    return match["column"], int(match["item"])


def cell_kind(kind: pa.DataType) -> CellKind | None:
    """Return what cells of a type hold; None if the type is neither bytes, text nor a struct with `bytes` or `path`."""
    kind = _plain_type(kind)
    if _is_binary(kind):
        return "bytes"
    if _is_text(kind):
        return "text"
    if pa.types.is_struct(kind):
        parts = {field.name: _plain_type(field.type) for field in kind}
        has_bytes = "bytes" in parts and (_is_binary(parts["bytes"]) or _is_text(parts["bytes"]))
        has_path = "path" in parts and _is_text(parts["path"])
        if has_bytes or has_path:
            return "struct"
    return None


def item_of(value: Any, item: int | None) -> Any:
    """Return a cell's value. If `item` is set, return this item of the cell's list, or None if the list is shorter."""
    if item is None or value is None:
        return value
    return value[item] if item < len(value) else None


def path_in(value: Any) -> str | None:
    """Return the path or URI in a cell's value; None if the value is the image itself, or is empty."""
    if isinstance(value, dict):
        path = value.get("path")
        return path if isinstance(path, str) and path and value.get("bytes") is None else None
    return value if isinstance(value, str) and value and not is_embedded(value) else None


def content_of(value: Any) -> bytes | ImageProblem:
    """Return the image in a cell's value, or the reason why there is none."""
    content = value.get("bytes") if isinstance(value, dict) else value
    if content is None:
        return ImageProblem(Reason.UNREADABLE, "no bytes in its row")
    if isinstance(content, bytes):
        return content
    if not isinstance(content, str):
        return ImageProblem(Reason.UNREADABLE, f"a {type(content).__name__} in its row, not bytes")
    try:
        return embedded_content(content)
    except ValueError as error:
        return ImageProblem(Reason.UNREADABLE, f"text in its row that holds no image: {error}")


def text_content(text: bytes) -> bytes | ImageProblem:
    """Return the image in a text that is base64 or a data: URI, or the reason why there is none. The text may contain
    JSON's escapes."""
    try:
        return content_of(json.loads(b'"' + text + b'"') if b"\\" in text else text.decode())
    except ValueError as error:
        return ImageProblem(Reason.UNREADABLE, f"text that holds no image: {error}")


def _plain_type(kind: pa.DataType) -> pa.DataType:
    """Return the type of a column's values, without extension types, dictionary encoding and run-end encoding."""
    while True:
        if isinstance(kind, pa.BaseExtensionType):
            kind = kind.storage_type
        elif pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
            kind = kind.value_type
        else:
            return kind


def _item_type(kind: pa.DataType) -> pa.DataType | None:
    types = pa.types
    is_list = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    is_list = is_list or types.is_list_view(kind) or types.is_large_list_view(kind)
    return kind.value_type if is_list else None


def _is_binary(kind: pa.DataType) -> bool:
    types = pa.types
    is_variable = types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)
    return bool(is_variable or types.is_fixed_size_binary(kind))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _short(kind: pa.DataType) -> str:
    name = str(kind)
    return name if len(name) <= _MAX_TYPE_LENGTH else f"{name[:_MAX_TYPE_LENGTH]}..."
