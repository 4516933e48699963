"""Wrap text to the width of the terminal."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator

_NAME_WIDTH = 34
_MAX_WIDTH = 110
_MIN_WIDTH = 60


def entry(name: str, description: str, width: int = _NAME_WIDTH) -> Iterator[str]:
    """The lines of a name and its description, which is below the name if the name is longer than `width`."""
    indent = " " * (width + 3)
    lines = wrapped(description, indent) or [indent]
    if len(name) > width:
        yield f"  {name}"
        yield from lines
        return
    yield f"  {name:<{width}} {lines[0].removeprefix(indent)}".rstrip()
    yield from lines[1:]


def wrapped(text: str, indent: str = "") -> list[str]:
    """The lines of a paragraph."""
    columns = shutil.get_terminal_size((_MAX_WIDTH, 24)).columns
    width = max(_MIN_WIDTH, min(_MAX_WIDTH, columns))
    return textwrap.wrap(text, width, initial_indent=indent, subsequent_indent=indent)
