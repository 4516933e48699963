"""A source of Parquet files with the bytes of images, their URIs, or Hugging Face's struct of `bytes` and `path`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mpa_ray.config import SourceConfig
from mpa_ray.corpus.locator import Locator
from mpa_ray.corpus.places.place import Entry
from mpa_ray.corpus.places.places import Places
from mpa_ray.corpus.sources.arrow_rows import rows_of
from mpa_ray.corpus.sources.columns import ImageColumn, item_of, path_in
from mpa_ray.corpus.sources.damage import unreadable, without_damaged
from mpa_ray.corpus.sources.left_out import NameFilter
from mpa_ray.corpus.sources.source import Files, Listed, Rows, UriPolicy, images_of_containers
from mpa_ray.records import ImageRef

ENDINGS = (".parquet",)
_ROWS_PER_BATCH = 256
"""Small, because a batch may hold images."""
_ITEM = "[]"
"""Stands for the name of the items of a list."""
_MAX_URI_BYTES = 4096
"""If the texts of a row group are longer than this on average, they are images in base64. Then no row names a file, so
listing does not read the texts."""


class ParquetFiles:
    """Images in rows of Parquet files. The id of an image is the file's path and the row number.

    Listing reads a file's footer and the columns with ids, metadata and URIs. It reads the images of a row group only
    if they are in structs and, according to the footer, some of these structs may have no bytes.
    """

    def __init__(self, config: SourceConfig, places: Places) -> None:
        self._config, self._places = config, places
        self._rows, self._uri_policy = Rows(config), UriPolicy(config)
        self._files = Files(places, config.path, ENDINGS, config.num_listers, NameFilter.of(config))

    def images(self, after: ImageRef | None = None) -> Iterator[Listed]:
        return images_of_containers(self._files, self._images_in, after)

    def _images_in(self, entry: Entry) -> Iterator[Listed]:
        return without_damaged(self._config, entry.path, self._listing(entry))

    def _listing(self, entry: Entry) -> Iterator[Listed]:
        try:
            with self._places.open(entry.uri) as content, pq.ParquetFile(content, pre_buffer=False) as file:
                yield from self._images_of(file, entry)
        except (OSError, ValueError, pa.ArrowException) as error:
            raise unreadable(self._config, entry.path, entry.uri, "Parquet", error) from error

    def _images_of(self, file: pq.ParquetFile, entry: Entry) -> Iterator[ImageRef]:
        setting, schema = self._config.image_column, file.schema_arrow
        self._rows.check(schema.names, entry.path)
        column = ImageColumn.of(schema, setting, entry.path)
        for number, (values, path) in enumerate(rows_with_images(file, self._rows.columns, column)):
            if path is None:
                locator = str(Locator(entry.uri, row=number, column=setting))
            else:
                locator = self._uri_policy.uri(path, entry.uri, f"{entry.path}, row {number}")
            yield self._rows.ref(entry.path, number, values, locator)


def rows_with_images(
    file: pq.ParquetFile, columns: Iterable[str], image: ImageColumn
) -> Iterator[tuple[dict[str, Any], str | None]]:
    """Yield the values of the columns in each row, and the path or URI of the row's image. The path is None if the row
    names no file.

    Args:
        file: The Parquet file.
        columns: The names of the columns to yield.
        image: The column with the images.
    """
    for group in range(file.num_row_groups):
        read = _read_for_images(file, group, image)
        names = list(dict.fromkeys([*columns, *([read] if read else [])]))
        for values in _values(file, group, names):
            yield values, path_in(item_of(values.get(image.name), image.item)) if read else None


def _read_for_images(file: pq.ParquetFile, group: int, column: ImageColumn) -> str | None:
    """Return the column to read from a row group to see which rows name a file instead of holding the image.

    Returns:
        None if all rows hold their images; the leaf column with the paths if no row holds its image; otherwise the
        whole column.
    """
    if column.kind == "bytes":
        return None
    first, own, num_leaves = _leaves_of(file.schema_arrow, column.name)
    metadata = file.metadata.row_group(group)
    if metadata.num_columns != len(file.schema):
        # Without this check, pyarrow would abort the process.
        raise pa.ArrowInvalid(f"row group {group} has {metadata.num_columns} columns, the schema {len(file.schema)}")
    if num_leaves != len(file.schema):
        # A column's type is stored in a way that `_leaves` does not know.
        return column.name
    chunks = {leaf: metadata.column(number) for number, leaf in enumerate(own, first)}
    if column.kind == "text":
        num_bytes = sum(chunk.total_uncompressed_size for chunk in chunks.values())
        return None if num_bytes > _MAX_URI_BYTES * metadata.num_rows else column.name
    inside = () if column.item is None else (_ITEM,)
    contents, paths = chunks.get((*inside, "bytes")), chunks.get((*inside, "path"))
    if contents is None or paths is None:
        return None if paths is None else column.name
    num_nulls = _num_nulls(contents)
    if num_nulls == 0 or _num_nulls(paths) == paths.num_values:
        return None
    if num_nulls == contents.num_values and column.item is None:
        return f"{column.name}.path"
    # Some rows have only a path, or the file has no statistics.
    return column.name


def _leaves_of(schema: pa.Schema, name: str) -> tuple[int, list[tuple[str, ...]], int]:
    """Find the leaf columns of a column. They are identified by position, because the path `image.path` may also be the
    name of another column.

    Returns:
        The number of leaves before the column, the names inside the column that lead to each of its leaves, and the
        number of all leaves.
    """
    leaves = [_leaves(field.type) for field in schema]
    position = schema.names.index(name)
    return sum(map(len, leaves[:position])), leaves[position], sum(map(len, leaves))


def _leaves(kind: pa.DataType) -> list[tuple[str, ...]]:
    if isinstance(kind, pa.BaseExtensionType):
        return _leaves(kind.storage_type)
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return _leaves(kind.value_type)
    children: list[pa.Field] = [kind.field(number) for number in range(kind.num_fields)]
    is_struct = pa.types.is_struct(kind)
    return [(child.name if is_struct else _ITEM, *leaf) for child in children for leaf in _leaves(child.type)] or [()]


def _num_nulls(chunk: pq.ColumnChunkMetaData) -> int | None:
    """Return the number of nulls in a column of a row group; None if the file has no statistics."""
    statistics = chunk.statistics
    return statistics.null_count if statistics is not None and statistics.has_null_count else None


def _values(file: pq.ParquetFile, group: int, columns: list[str]) -> Iterator[dict[str, Any]]:
    if not columns:
        yield from ({} for _ in range(file.metadata.row_group(group).num_rows))
        return
    for batch in file.iter_batches(_ROWS_PER_BATCH, row_groups=[group], columns=columns, use_threads=False):
        yield from rows_of(batch)
