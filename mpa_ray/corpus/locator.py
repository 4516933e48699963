"""The address of an image, which may be a part of a larger file, as one string. A row stores it as its `uri`.

    tars/0001.tar#bytes=1536-9215                   a range of bytes, first to last
    list.tsv#text=18-4097                           a range of bytes with base64 or a data: URI
    images.parquet#row=17&column=image              a row of a Parquet file
    data.arrow#batch=512-8191&row=17&column=image   a row of the record batch in these bytes of an Arrow stream

If the name of a file ends in `#`, or in text that looks like such a fragment, the address of the whole file is its name
with one more `#`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import quote, unquote

_FRAGMENT = re.compile(
    r"(?P<uri>.*)#(?:(?P<form>bytes|text)=(?P<first>\d+)-(?P<last>-?\d+)"
    r"|(?:batch=(?P<batch_first>\d+)-(?P<batch_last>-?\d+)&)?row=(?P<row>\d+)&column=(?P<column>[^#&]*))",
    re.DOTALL,
)


@dataclass(frozen=True)
class Span:
    """A range of bytes in a file."""

    first: int
    num_bytes: int

    @property
    def last(self) -> int:
        """The position of the last byte; `first` - 1 for an empty span."""
        return self.first + self.num_bytes - 1


@dataclass(frozen=True)
class Locator:
    """The address of an image: a whole file, or a part of one."""

    uri: str
    """The file's URI."""
    span: Span | None = None
    """The image's bytes; if `row` is set, the bytes of the record batch that contains the row."""
    row: int | None = None
    column: str | None = None
    is_text: bool = False
    """Whether the span holds base64 or a data: URI instead of the image."""

    def __str__(self) -> str:
        if self.row is not None and self.column is not None:
            batch = f"batch={self.span.first}-{self.span.last}&" if self.span else ""
            return f"{self.uri}#{batch}row={self.row}&column={quote(self.column, safe='')}"
        if self.span is not None:
            return f"{self.uri}#{'text' if self.is_text else 'bytes'}={self.span.first}-{self.span.last}"
        return f"{self.uri}#" if self.uri.endswith("#") or _FRAGMENT.fullmatch(self.uri) else self.uri

    @classmethod
    def parse(cls, text: str) -> Locator:
        """The inverse of `str`."""
        match = _FRAGMENT.fullmatch(text)
        if match is None:
            return cls(text.removesuffix("#"))
        uri = match["uri"]
        if match["row"] is None:
            return cls(uri, _span(match["first"], match["last"]), is_text=match["form"] == "text")
        span = _span(match["batch_first"], match["batch_last"]) if match["batch_first"] else None
        return cls(uri, span, int(match["row"]), unquote(match["column"]))


def _span(first: str, last: str) -> Span:
    return Span(int(first), int(last) - int(first) + 1)
