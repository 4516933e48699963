"""Read a shard's images, wherever they lie: many requests at a time, neighbours in one request, nothing raised."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import groupby
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from mpa_ray.config import ObjectStoreConfig
from mpa_ray.corpus.locator import Locator, Span
from mpa_ray.corpus.places.places import Places
from mpa_ray.corpus.sources.saved_dataset import read_batch, stream_schema
from mpa_ray.imaging.decode import ImageProblem
from mpa_ray.records import Reason

Content = bytes | ImageProblem
_Numbered = tuple[int, Locator]
_Found = tuple[int, Content]
_GAP_BYTES = 64 * 2**10
"""Members of a tar that are this close are read together: headers and a sample's other members lie between images."""
_RUN_BYTES = 8 * 2**20


@dataclass(frozen=True)
class Reader:
    """Holds settings alone, so it can be sent to any process."""

    object_store: ObjectStoreConfig
    num_threads: int = 16
    min_bytes: int = 0
    max_bytes: int | None = None

    @property
    def places(self) -> Places:
        return Places(self.object_store)

    def read(self, uris: Sequence[str]) -> list[Content]:
        """Each image's bytes, or why there are none, in the order given."""
        contents: list[Content] = [ImageProblem(Reason.UNREADABLE, "not read")] * len(uris)
        with ThreadPoolExecutor(self.num_threads) as threads:
            for numbered in threads.map(lambda job: job(), list(self._jobs(uris))):
                for number, content in numbered:
                    contents[number] = content
        return contents

    def _jobs(self, uris: Sequence[str]) -> Iterator[Callable[[], list[_Found]]]:
        """What can be read by one request each."""
        located = sorted(enumerate(map(Locator.parse, uris)), key=lambda found: _place_in_file(found[1]))
        for (uri, inside), group in groupby(located, key=lambda found: (found[1].uri, _kind(found[1]))):
            found = list(group)
            if inside == "whole":
                jobs = [([one], partial(self._whole, uri, one)) for one in found]
            elif inside == "span":
                jobs = [(run, partial(self._spans, uri, run)) for run in _runs(found)]
            elif inside == "batch":
                batches = [list(batch) for _, batch in groupby(found, key=lambda f: f[1].span)]
                jobs = [(batch, partial(self._rows_of_batch, uri, batch)) for batch in batches]
            else:
                jobs = [(found, partial(self._rows_of_parquet, uri, found))]
            yield from (partial(self._attempt, wanted, read) for wanted, read in jobs)

    def _attempt(self, wanted: Sequence[_Numbered], read: Callable[[], list[_Found]]) -> list[_Found]:
        try:
            return [(number, self._within_limits(content)) for number, content in read()]
        except (OSError, ValueError, KeyError) as error:
            # ValueError: also a name with a zero byte, and what pyarrow says of damaged files.
            return [(number, _unreadable(error)) for number, _ in wanted]

    def _whole(self, uri: str, wanted: _Numbered) -> list[_Found]:
        # One byte more than is allowed tells a file that is too large.
        limit = None if self.max_bytes is None else self.max_bytes + 1
        return [(wanted[0], self.places.of(uri).read(uri, 0, limit))]

    def _spans(self, uri: str, run: list[_Numbered]) -> list[_Found]:
        spans = [cast(Span, locator.span) for _, locator in run]
        first = spans[0].first
        content = self.places.of(uri).read(uri, first, max(span.last for span in spans) + 1 - first)
        parts = [content[span.first - first : span.last + 1 - first] for span in spans]
        return [
            (number, part if len(part) == span.num_bytes else ImageProblem(Reason.UNREADABLE, f"{uri} ends before it"))
            for (number, _), span, part in zip(run, spans, parts, strict=True)
        ]

    def _rows_of_batch(self, uri: str, wanted: list[_Numbered]) -> list[_Found]:
        span = cast(Span, wanted[0][1].span)
        batch = read_batch(self.places.of(uri).read(uri, span.first, span.num_bytes), _schema(self.object_store, uri))
        return [(number, _cell(batch.column(locator.column), cast(int, locator.row))) for number, locator in wanted]

    def _rows_of_parquet(self, uri: str, wanted: list[_Numbered]) -> list[_Found]:
        contents: list[_Found] = []
        with self.places.open(uri) as content, pq.ParquetFile(content, pre_buffer=False) as file:
            first = 0
            queue = wanted
            for group in range(file.num_row_groups):
                end = first + file.metadata.row_group(group).num_rows
                inside = [(n, locator) for n, locator in queue if cast(int, locator.row) < end]
                queue = queue[len(inside) :]
                if inside:
                    column = inside[0][1].column
                    table = file.read_row_group(group, columns=[column], use_threads=False)
                    contents += [(n, _cell(table.column(column), cast(int, lo.row) - first)) for n, lo in inside]
                first = end
        return contents + [(number, ImageProblem(Reason.UNREADABLE, f"{uri} has no such row")) for number, _ in queue]

    def _within_limits(self, content: Content) -> Content:
        if isinstance(content, ImageProblem):
            return content
        if self.max_bytes is not None and len(content) > self.max_bytes:
            return ImageProblem(Reason.TOO_MANY_BYTES, f"more than source.max_bytes = {self.max_bytes}")
        if len(content) < self.min_bytes:
            return ImageProblem(Reason.TOO_FEW_BYTES, f"{len(content)}, less than source.min_bytes = {self.min_bytes}")
        return content


def _kind(locator: Locator) -> str:
    if locator.row is None:
        return "whole" if locator.span is None else "span"
    return "row" if locator.span is None else "batch"


def _place_in_file(locator: Locator) -> tuple[str, str, int, int]:
    return locator.uri, _kind(locator), locator.span.first if locator.span else 0, locator.row or 0


def _runs(found: list[_Numbered]) -> Iterator[list[_Numbered]]:
    """Spans in the order of a file, together where they are close and not too long."""
    run: list[_Numbered] = []
    for number, locator in found:
        span = cast(Span, locator.span)
        if run:
            begin, end = cast(Span, run[0][1].span).first, cast(Span, run[-1][1].span).last
            if span.first - end > _GAP_BYTES or span.last - begin > _RUN_BYTES:
                yield run
                run = []
        run.append((number, locator))
    if run:
        yield run


def _cell(column: pa.ChunkedArray | pa.Array, row: int) -> Content:
    """An image in a table: bytes, or a struct with them."""
    value: Any = column[row].as_py()
    content = value.get("bytes") if isinstance(value, dict) else value
    if content is None:
        return ImageProblem(Reason.UNREADABLE, "no bytes in its row")
    return bytes(content)


def _unreadable(error: Exception) -> ImageProblem:
    return ImageProblem(Reason.UNREADABLE, f"{type(error).__name__}: {getattr(error, 'strerror', None) or error}")


@lru_cache(64)
def _schema(object_store: ObjectStoreConfig, uri: str) -> pa.Schema:
    return stream_schema(Places(object_store), uri)
