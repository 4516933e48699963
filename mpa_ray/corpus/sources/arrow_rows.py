"""Converts rows of Arrow tables to Python objects, even if their text is not UTF-8."""

from __future__ import annotations

from typing import Any

import pyarrow as pa


def rows_of(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """Return the rows of a batch. Bytes of text that are not UTF-8 become surrogates, as with `surrogateescape`."""
    try:
        rows: list[dict[str, Any]] = batch.to_pylist()
    except UnicodeDecodeError:
        columns = [column.cast(without_text(column.type)).to_pylist() for column in batch.columns]
        kinds = {field.name: field.type for field in batch.schema}
        rows = [
            {name: _decoded(value, kind) for (name, kind), value in zip(kinds.items(), values, strict=True)}
            for values in zip(*columns, strict=True)
        ]
    return rows


def without_text(kind: pa.DataType) -> pa.DataType:
    """Replace text by bytes in a type. A cast to the returned type does not decode the text."""
    types = pa.types
    if types.is_dictionary(kind):
        return without_text(kind.value_type)
    if types.is_string(kind) or types.is_string_view(kind):
        return pa.binary()
    if types.is_large_string(kind):
        return pa.large_binary()
    if types.is_list(kind):
        return pa.list_(without_text(kind.value_type))
    if types.is_large_list(kind):
        return pa.large_list(without_text(kind.value_type))
    if types.is_struct(kind):
        return pa.struct([pa.field(field.name, without_text(field.type)) for field in kind])
    return kind


def _decoded(value: Any, kind: pa.DataType) -> Any:
    types = pa.types
    if value is None:
        return None
    if types.is_dictionary(kind):
        return _decoded(value, kind.value_type)
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return value.decode(errors="surrogateescape")
    if types.is_list(kind) or types.is_large_list(kind):
        return [_decoded(item, kind.value_type) for item in value]
    if types.is_struct(kind):
        return {field.name: _decoded(value[field.name], field.type) for field in kind}
    return value
