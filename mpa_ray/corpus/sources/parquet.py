"""A source of Parquet files with images' bytes, URIs, or Hugging Face's struct of both."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from mpa_ray.config import SourceConfig
from mpa_ray.corpus.locator import Locator
from mpa_ray.corpus.places.place import Entry
from mpa_ray.corpus.places.places import Places
from mpa_ray.corpus.sources.source import Files, Rows, UriPolicy, images_of_containers
from mpa_ray.errors import ConfigError
from mpa_ray.records import ImageRef

ENDINGS = (".parquet",)


class ParquetFiles:
    """Images in rows of Parquet files. The id of an image is the file's path and the row number.

    Listing does not read the images, only a file's footer and the columns with ids, metadata and URIs.
    """

    def __init__(self, config: SourceConfig, places: Places) -> None:
        self._config, self._places = config, places
        self._rows, self._uri_policy = Rows(config), UriPolicy(config)
        self._files = Files(places, config.path, ENDINGS, config.num_listers)

    def images(self, after: ImageRef | None = None) -> Iterator[ImageRef]:
        return images_of_containers(self._files, self._images_in, after)

    def _images_in(self, entry: Entry) -> Iterator[ImageRef]:
        try:
            with self._places.open(entry.uri) as content, pq.ParquetFile(content, pre_buffer=False) as file:
                yield from self._images_of(file, entry)
        except (OSError, pa.ArrowInvalid) as error:
            raise ConfigError(
                "source.path",
                self._config.path,
                f"{entry.path} cannot be read as Parquet ({error}).",
                "Repair the file, or remove it from the source.",
            ) from error

    def _images_of(self, file: pq.ParquetFile, entry: Entry) -> Iterator[ImageRef]:
        column = self._config.image_column
        self._rows.check(file.schema_arrow.names, entry.path)
        uri_column = _column_of_uris(file, column, entry.path)
        columns = [*self._rows.columns, *([uri_column] if uri_column else [])]
        for number, values in enumerate(_values(file, columns)):
            if uri_column is None:
                locator = str(Locator(entry.uri, row=number, column=column))
            else:
                locator = self._locator(values, uri_column, entry, number)
            yield self._rows.ref(entry.path, number, values, locator)

    def _locator(self, values: dict[str, Any], uri_column: str, entry: Entry, number: int) -> str:
        outer, _, inner = uri_column.partition(".")
        uri = (values[outer] or {}).get(inner) if inner else values[outer]
        where = f"{entry.path}, row {number}"
        if not uri:
            raise ConfigError(
                "source.path",
                self._config.path,
                f"{where}: neither bytes nor a URI in {outer!r}.",
                "Remove the row.",
            )
        return self._uri_policy.uri(uri, entry.uri, where)


def _column_of_uris(file: pq.ParquetFile, column: str, path: str) -> str | None:
    """The column with the images' URIs; None if the image column contains the images."""
    kind = file.schema_arrow.field(column).type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return column
    if pa.types.is_struct(kind) and {"bytes", "path"} <= {field.name for field in kind}:
        return f"{column}.path" if _all_null(file, f"{column}.bytes") else None
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return None
    raise ConfigError(
        "source.image_column",
        column,
        f"has type {kind} in {path}.",
        "Choose a column with bytes, URIs, or a struct of `bytes` and `path`.",
    )


def _all_null(file: pq.ParquetFile, leaf: str) -> bool:
    """Whether a column holds only nulls, by the statistics of all row groups; False if statistics are missing."""
    index = [file.schema.column(i).path for i in range(len(file.schema))].index(leaf)
    groups = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
    statistics = [(group.num_rows, group.column(index).statistics) for group in groups]
    return bool(groups) and all(s is not None and s.has_null_count and s.null_count == n for n, s in statistics)


def _values(file: pq.ParquetFile, columns: list[str]) -> Iterator[dict[str, Any]]:
    if not columns:
        yield from ({} for _ in range(file.metadata.num_rows))
        return
    for batch in file.iter_batches(columns=columns, use_threads=False):
        yield from cast(list[dict[str, Any]], batch.to_pylist())
