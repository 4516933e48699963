"""A source of Parquet files that hold images' bytes, their URIs, or Hugging Face's struct of both."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from mpa_ray.config import SourceConfig
from mpa_ray.corpus.locator import Locator
from mpa_ray.corpus.places.place import Entry
from mpa_ray.corpus.places.places import Places
from mpa_ray.corpus.sources.source import Files, Rows, UriPolicy, in_containers
from mpa_ray.errors import ConfigError
from mpa_ray.records import ImageRef

ENDINGS = (".parquet",)


class ParquetFiles:
    """An image's id is its file's path and the row's number. Bytes are not read: only a file's footer, and the columns
    that are asked for."""

    def __init__(self, config: SourceConfig, places: Places) -> None:
        self._config, self._places = config, places
        self._rows, self._uri_policy = Rows(config), UriPolicy(config)
        self._files = Files(places, config.path, ENDINGS, config.num_listers)

    def images(self, after: ImageRef | None = None) -> Iterator[ImageRef]:
        return in_containers(self._files, self._images_in, after)

    def _images_in(self, entry: Entry) -> Iterator[ImageRef]:
        try:
            with self._places.open(entry.uri) as content, pq.ParquetFile(content, pre_buffer=False) as file:
                yield from self._images_of(file, entry)
        except (OSError, pa.ArrowInvalid) as error:
            raise ConfigError(
                "source.path",
                self._config.path,
                f"{entry.path} is not to be read as Parquet ({error}).",
                "Mend it, or leave it out.",
            ) from error

    def _images_of(self, file: pq.ParquetFile, entry: Entry) -> Iterator[ImageRef]:
        column = self._config.image_column
        self._rows.check(file.schema_arrow.names, entry.path)
        uris = _column_of_uris(file, column, entry.path)
        wanted = [*self._rows.columns, *([uris] if uris else [])]
        for number, values in enumerate(_values(file, wanted)):
            if uris is None:
                locator = str(Locator(entry.uri, row=number, column=column))
            else:
                locator = self._admitted(values, uris, entry, number)
            yield self._rows.ref(entry.path, number, values, locator)

    def _admitted(self, values: dict[str, Any], uris: str, entry: Entry, number: int) -> str:
        outer, _, inner = uris.partition(".")
        found = (values[outer] or {}).get(inner) if inner else values[outer]
        where = f"{entry.path}, row {number}"
        if not found:
            raise ConfigError(
                "source.path",
                self._config.path,
                f"{where}: neither bytes nor a URI in {outer!r}.",
                "Leave the row out.",
            )
        return self._uri_policy.uri(found, entry.uri, where)


def _column_of_uris(file: pq.ParquetFile, column: str, path: str) -> str | None:
    """The column whose strings name the images; None where the images themselves are in it."""
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
        f"is {kind} in {path}.",
        "Choose one with bytes, URIs, or a struct of `bytes` and `path`.",
    )


def _all_null(file: pq.ParquetFile, leaf: str) -> bool:
    """By the statistics of the row groups; where there are none the bytes are taken to be there."""
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
