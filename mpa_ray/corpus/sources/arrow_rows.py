"""Rows of Arrow tables as Python objects, also where text is not UTF-8."""

from __future__ import annotations

from typing import Any

import pyarrow as pa


def rows_of(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """The rows of a batch. Bytes of a text that are not UTF-8 become surrogates, as in the names of files."""
    try:
        rows: list[dict[str, Any]] = batch.to_pylist()
    except UnicodeDecodeError:
        columns = [column.cast(_as_binary(column.type)).to_pylist() for column in batch.columns]
        kinds = {field.name: field.type for field in batch.schema}
        rows = [
            {name: _decoded(value, kind) for (name, kind), value in zip(kinds.items(), values, strict=True)}
            for values in zip(*columns, strict=True)
        ]
    return rows


def _as_binary(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_string(kind):
        return pa.binary()
    if pa.types.is_large_string(kind):
        return pa.large_binary()
    if pa.types.is_list(kind):
        return pa.list_(_as_binary(kind.value_type))
    if pa.types.is_large_list(kind):
        return pa.large_list(_as_binary(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(field.name, _as_binary(field.type)) for field in kind])
    return kind


def _decoded(value: Any, kind: pa.DataType) -> Any:
    if value is None:
        return None
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return value.decode(errors="surrogateescape")
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return [_decoded(item, kind.value_type) for item in value]
    if pa.types.is_struct(kind):
        return {field.name: _decoded(value[field.name], field.type) for field in kind}
    return value
