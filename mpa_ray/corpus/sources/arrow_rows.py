"""Converts rows of Arrow tables to Python objects, even if their text is not UTF-8."""

from __future__ import annotations

from typing import Any

import pyarrow as pa


def rows_of(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """Return the rows of a batch. Bytes of text that are not UTF-8 become surrogates, as with `surrogateescape`."""
    try:
        rows: list[dict[str, Any]] = batch.to_pylist()
    except UnicodeDecodeError:
        columns = [with_bytes_for_text(column).to_pylist() for column in batch.columns]
        kinds = {field.name: field.type for field in batch.schema}
        rows = [
            {name: _decoded(value, kind) for (name, kind), value in zip(kinds.items(), values, strict=True)}
            for values in zip(*columns, strict=True)
        ]
    return rows


def with_bytes_for_text(column: pa.Array) -> pa.Array:
    """Replace text with bytes in a column, without decoding the text."""
    if isinstance(column.type, pa.BaseExtensionType):
        return with_bytes_for_text(column.storage)
    if pa.types.is_run_end_encoded(column.type):
        # This import takes a tenth of a second, and such columns are rare.
        from pyarrow import compute

        return with_bytes_for_text(compute.run_end_decode(column))
    if isinstance(column, pa.ListViewArray | pa.LargeListViewArray):
        # In pyarrow 26, casting list views to lists creates too few offsets.
        items = with_bytes_for_text(column.values)
        return type(column).from_arrays(column.offsets, column.sizes, items, mask=column.is_null())
    return column.cast(_without_text(column.type))


def _without_text(kind: pa.DataType) -> pa.DataType:
    """Replace text with bytes in a type. A cast to the returned type does not decode the text."""
    types = pa.types
    if types.is_dictionary(kind):
        return _without_text(kind.value_type)
    if types.is_string(kind) or types.is_string_view(kind):
        return pa.binary()
    if types.is_large_string(kind):
        return pa.large_binary()
    if types.is_map(kind):
        return pa.map_(_without_text(kind.key_type), _without_text(kind.item_type))
    if types.is_fixed_size_list(kind):
        return pa.list_(_without_text(kind.value_type), kind.list_size)
    if types.is_list(kind):
        return pa.list_(_without_text(kind.value_type))
    if types.is_large_list(kind):
        return pa.large_list(_without_text(kind.value_type))
    if types.is_struct(kind):
        return pa.struct([pa.field(field.name, _without_text(field.type)) for field in kind])
    return kind


def _decoded(value: Any, kind: pa.DataType) -> Any:
    types = pa.types
    if value is None:
        return None
    if isinstance(kind, pa.BaseExtensionType):
        return _decoded(value, kind.storage_type)
    if types.is_dictionary(kind) or types.is_run_end_encoded(kind):
        return _decoded(value, kind.value_type)
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return value.decode(errors="surrogateescape")
    if types.is_map(kind):
        return [(_decoded(key, kind.key_type), _decoded(item, kind.item_type)) for key, item in value]
    if types.is_struct(kind):
        return {field.name: _decoded(value[field.name], field.type) for field in kind}
    if isinstance(value, list):
        return [_decoded(item, kind.value_type) for item in value]
    return value
