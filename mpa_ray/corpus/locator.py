"""How one string names an image inside a larger file, so that a row needs no more than its `uri`.

    tars/0001.tar#bytes=1536-9215          bytes of a file, first to last
    images.parquet#row=17&column=image     a row of a Parquet file
    data.arrow#batch=512-8191&row=17&column=image   a row of the record batch in these bytes of an Arrow stream

A name that ends like one of these by itself, or in `#`, gets a further `#` behind it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import quote, unquote

_FRAGMENT = re.compile(
    r"(?P<uri>.*)#(?:bytes=(?P<first>\d+)-(?P<last>-?\d+)"
    r"|(?:batch=(?P<batch_first>\d+)-(?P<batch_last>-?\d+)&)?row=(?P<row>\d+)&column=(?P<column>[^#&]*))",
    re.DOTALL,
)


@dataclass(frozen=True)
class Span:
    """Bytes of a file."""

    first: int
    num_bytes: int

    @property
    def last(self) -> int:
        """The last byte; one less than the first where there is none."""
        return self.first + self.num_bytes - 1


@dataclass(frozen=True)
class Locator:
    """A whole file, or what is in it of an image."""

    uri: str
    """Of the file."""
    span: Span | None = None
    """The image's bytes; with a row, the bytes of its record batch."""
    row: int | None = None
    column: str | None = None

    def __str__(self) -> str:
        if self.row is not None and self.column is not None:
            batch = f"batch={self.span.first}-{self.span.last}&" if self.span else ""
            return f"{self.uri}#{batch}row={self.row}&column={quote(self.column, safe='')}"
        if self.span is not None:
            return f"{self.uri}#bytes={self.span.first}-{self.span.last}"
        return f"{self.uri}#" if self.uri.endswith("#") or _FRAGMENT.fullmatch(self.uri) else self.uri

    @classmethod
    def parse(cls, text: str) -> Locator:
        """The inverse of `str`."""
        found = _FRAGMENT.fullmatch(text)
        if found is None:
            return cls(text.removesuffix("#"))
        uri = found["uri"]
        if found["row"] is None:
            return cls(uri, _span(found["first"], found["last"]))
        span = _span(found["batch_first"], found["batch_last"]) if found["batch_first"] else None
        return cls(uri, span, int(found["row"]), unquote(found["column"]))


def _span(first: str, last: str) -> Span:
    return Span(int(first), int(last) - int(first) + 1)
