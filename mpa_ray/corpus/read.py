"""Reads the images of a shard concurrently. One request reads neighbouring images of a file. If an image cannot be
read, the reader returns the reason instead of raising an error."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import groupby
from typing import cast

import pyarrow as pa
import pyarrow.parquet as pq

from mpa_ray.config import ObjectStoreConfig
from mpa_ray.corpus.locator import Locator, Span
from mpa_ray.corpus.places.places import Places
from mpa_ray.corpus.source_root import MovedRoot
from mpa_ray.corpus.sources.arrow_stream import StreamHead
from mpa_ray.corpus.sources.columns import content_of, item_of, split_item, text_content
from mpa_ray.errors import may_pass
from mpa_ray.imaging.decode import ImageProblem
from mpa_ray.records import Reason
from mpa_ray.storage.deadline import call_each

Content = bytes | ImageProblem
"""An image's bytes, or the reason why there are none."""

_NumberedLocator = tuple[int, Locator]
_NumberedContent = tuple[int, Content]
"""The numbers in both types are positions in the list of URIs to read."""
_Request = tuple[Sequence[_NumberedLocator], Callable[[], list[_NumberedContent]]]
"""Images, and the function that reads all of them."""

_MAX_GAP_BYTES = 64 * 2**10
"""If the gap between two spans has at most this size, one request reads both. In a tar, the gaps contain headers and
other members."""
_MAX_RUN_BYTES = 8 * 2**20


@dataclass(frozen=True)
class Reader:
    """Reads images by URI. It holds only settings, so it can be sent to any process."""

    object_store: ObjectStoreConfig
    num_threads: int = 16
    min_bytes: int = 0
    max_bytes: int | None = None
    follow_redirects: bool = False
    """Whether a web server may redirect to another host."""
    moved: MovedRoot | None = None
    """Where the images are now, if they have moved since they were indexed."""

    @property
    def places(self) -> Places:
        """The places from which images are read."""
        return Places(self.object_store, self.follow_redirects)

    def read(self, uris: Sequence[str]) -> list[Content]:
        """Return the content of each URI, in the given order. This raises no error.

        A read that has not ended at its deadline is abandoned. After `num_threads` such reads, the remaining reads are
        not tried, because the storage seems not to answer.
        """
        contents: list[Content] = [ImageProblem(Reason.UNREADABLE, "not read")] * len(uris)
        requests = list(self._requests(uris))
        calls = [partial(self._catch_errors, images, read) for images, read in requests]
        results = call_each(calls, self.num_threads, self.object_store.read_deadline_s)
        for (images, _), result in zip(requests, results, strict=True):
            if isinstance(result, TimeoutError):
                result = [(number, _unreadable(result)) for number, _ in images]
            for number, content in result:
                contents[number] = content
        return contents

    def current_uri(self, uri: str) -> str:
        """Return the URI from which an image is read."""
        return str(self._locator(uri))

    def _locator(self, uri: str) -> Locator:
        locator = Locator.parse(uri)
        return locator if self.moved is None else replace(locator, uri=self.moved.uri(locator.uri))

    def _requests(self, uris: Sequence[str]) -> Iterator[_Request]:
        """Group the images of each file so that one request can read each group."""
        locators = sorted(enumerate(map(self._locator, uris)), key=lambda numbered: _position(numbered[1]))
        for (uri, kind), group in groupby(locators, key=lambda numbered: (numbered[1].uri, _kind(numbered[1]))):
            images = list(group)
            if kind == "whole":
                requests = [([image], partial(self._read_whole, uri, image)) for image in images]
            elif kind == "span":
                requests = [(run, partial(self._read_spans, uri, run)) for run in _runs(images)]
            elif kind == "batch":
                batches = [list(batch) for _, batch in groupby(images, key=lambda numbered: numbered[1].span)]
                requests = [(batch, partial(self._read_batch, uri, batch)) for batch in batches]
            else:
                requests = [(images, partial(self._read_parquet_rows, uri, images))]
            yield from requests

    def _catch_errors(
        self, images: Sequence[_NumberedLocator], read: Callable[[], list[_NumberedContent]]
    ) -> list[_NumberedContent]:
        try:
            return [(number, self._check_size(content)) for number, content in read()]
        except (OSError, ValueError, LookupError, pa.ArrowException) as error:
            # Names with a zero byte cause a ValueError, and so do some damaged files that pyarrow reads.
            return [(number, _unreadable(error)) for number, _ in images]

    def _read_whole(self, uri: str, image: _NumberedLocator) -> list[_NumberedContent]:
        # Read one byte more than the limit, to notice a file that is too large.
        limit = None if self.max_bytes is None else self.max_bytes + 1
        return [(image[0], self.places.of(uri).read(uri, 0, limit))]

    def _read_spans(self, uri: str, run: list[_NumberedLocator]) -> list[_NumberedContent]:
        spans = [cast(Span, locator.span) for _, locator in run]
        first = spans[0].first
        content = self.places.of(uri).read(uri, first, max(span.last for span in spans) + 1 - first)
        parts = [content[span.first - first : span.last + 1 - first] for span in spans]
        cut = ImageProblem(Reason.UNREADABLE, f"{uri} ends before the image does")
        return [
            (number, cut if len(part) < span.num_bytes else text_content(part) if locator.is_text else part)
            for (number, locator), span, part in zip(run, spans, parts, strict=True)
        ]

    def _read_batch(self, uri: str, images: list[_NumberedLocator]) -> list[_NumberedContent]:
        span = cast(Span, images[0][1].span)
        content = self.places.of(uri).read(uri, span.first, span.num_bytes)
        batch = _stream_head(self.object_store, uri).read_batch(content, span.first)
        column, item = split_item(str(images[0][1].column), batch.schema.names)
        return [(number, _cell(batch.column(column), cast(int, locator.row), item)) for number, locator in images]

    def _read_parquet_rows(self, uri: str, images: list[_NumberedLocator]) -> list[_NumberedContent]:
        contents: list[_NumberedContent] = []
        with self.places.open(uri) as content, pq.ParquetFile(content, pre_buffer=False) as file:
            first = 0
            queue = images
            for group in range(file.num_row_groups):
                end = first + file.metadata.row_group(group).num_rows
                inside = [(number, locator) for number, locator in queue if cast(int, locator.row) < end]
                queue = queue[len(inside) :]
                if inside:
                    column, item = split_item(str(inside[0][1].column), file.schema_arrow.names)
                    cells = file.read_row_group(group, columns=[column], use_threads=False).column(column)
                    contents += [
                        (number, _cell(cells, cast(int, locator.row) - first, item)) for number, locator in inside
                    ]
                first = end
        return contents + [(number, ImageProblem(Reason.UNREADABLE, f"{uri} has no such row")) for number, _ in queue]

    def _check_size(self, content: Content) -> Content:
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


def _position(locator: Locator) -> tuple[str, str, int, int]:
    """Return a key that sorts images by file, and by their position in the file."""
    return locator.uri, _kind(locator), locator.span.first if locator.span else 0, locator.row or 0


def _runs(images: list[_NumberedLocator]) -> Iterator[list[_NumberedLocator]]:
    """Group spans that are close together, up to a maximum size. The spans must be sorted by position."""
    run: list[_NumberedLocator] = []
    for number, locator in images:
        span = cast(Span, locator.span)
        if run:
            begin, end = cast(Span, run[0][1].span).first, cast(Span, run[-1][1].span).last
            if span.first - end > _MAX_GAP_BYTES or span.last - begin > _MAX_RUN_BYTES:
                yield run
                run = []
        run.append((number, locator))
    if run:
        yield run


def _cell(column: pa.ChunkedArray | pa.Array, row: int, item: int | None) -> Content:
    """Return the image in a table's cell."""
    return content_of(item_of(column[row].as_py(), item))


def _unreadable(error: Exception) -> ImageProblem:
    reason = Reason.STORAGE if may_pass(error) else Reason.UNREADABLE
    return ImageProblem(reason, f"{type(error).__name__}: {getattr(error, 'strerror', None) or error}")


@lru_cache(64)
def _stream_head(object_store: ObjectStoreConfig, uri: str) -> StreamHead:
    return StreamHead.read(Places(object_store), uri)
