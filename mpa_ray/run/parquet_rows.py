"""Convert rows to the bytes of a Parquet file, and back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mpa_ray.records import RowT, checked_table, from_table, to_table


def to_parquet(rows: Sequence[RowT], row_type: type[RowT]) -> bytes:
    """Return a Parquet file with exactly the columns of the row type."""
    sink = pa.BufferOutputStream()
    pq.write_table(to_table(rows, row_type), sink, compression="zstd", use_dictionary=False)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def from_parquet(content: bytes, row_type: type[RowT]) -> list[RowT]:
    """The inverse of `to_parquet`. Raises ValueError if the file has different columns."""
    return from_table(read_table(content, row_type), row_type)


def read_table(content: bytes, row_type: type[RowT]) -> pa.Table:
    """The content of a Parquet file as an Arrow table. Raises ValueError if the file has different columns."""
    # Reading with Arrow's thread pool, or from a Python file, sometimes aborts the interpreter when it exits
    # (apache/arrow#34314, #50482). A shard is too small to gain from threads.
    with pq.ParquetFile(pa.BufferReader(content), pre_buffer=False) as file:
        return checked_table(file.read(use_threads=False), row_type)


def iter_tables(content: bytes, row_type: type[RowT]) -> Iterator[pa.Table]:
    """Yield the row groups of a Parquet file as Arrow tables. Raises as `read_table` does."""
    with pq.ParquetFile(pa.BufferReader(content), pre_buffer=False) as file:
        for group in range(file.num_row_groups):
            yield checked_table(file.read_row_group(group, use_threads=False), row_type)


def iter_parquet(content: bytes, row_type: type[RowT]) -> Iterator[RowT]:
    """Yield the rows of a Parquet file, decoding one row group at a time. Raises as `from_parquet` does."""
    with pq.ParquetFile(pa.BufferReader(content), pre_buffer=False) as file:
        for group in range(file.num_row_groups):
            yield from from_table(file.read_row_group(group, use_threads=False), row_type)


def read_columns(content: bytes, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return some columns of a Parquet file, as one dictionary per row. Raises KeyError for an unknown column."""
    with pq.ParquetFile(pa.BufferReader(content), pre_buffer=False) as file:
        if absent := set(names) - set(file.schema_arrow.names):
            raise KeyError(f"no column {', '.join(sorted(absent))}")
        rows: list[dict[str, Any]] = file.read(columns=list(names), use_threads=False).to_pylist()
        return rows
