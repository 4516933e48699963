"""The updating line at the bottom of a terminal. It shows the progress of all phases; other output goes above it."""

from __future__ import annotations

import os
import shutil
import sys
import threading
from collections.abc import Sequence
from typing import Any, Protocol, TextIO

from mpa_ray.observability.library_output import shows_library_lines

_REPAINT_EVERY_S = 0.5
_CLEAR = "\r\x1b[K"
"""Moves the cursor to the start of the row and erases the row."""
_BETWEEN = "  |  "


class Part(Protocol):
    """One part of the line, such as the progress of one phase."""

    def line(self) -> str:
        """The full text."""

    def short_line(self) -> str:
        """A shorter text, for a narrow terminal or many parts."""


def can_update(stream: TextIO) -> bool:
    """Whether a line of the stream can be overwritten.

    The stream must be a terminal that supports escape sequences, and no library may write to it. `NO_COLOR` must not be
    set.
    """
    is_dumb = os.environ.get("TERM", "dumb") == "dumb" or bool(os.environ.get("NO_COLOR"))
    return stream.isatty() and not is_dumb and not shows_library_lines()


def fit(parts: Sequence[Part], width: int) -> str:
    """Join the parts in one row: all full texts if they fit, or all short texts, or as many short texts as fit."""
    for texts in ([part.line() for part in parts], [part.short_line() for part in parts]):
        text = _BETWEEN.join(texts)
        if len(text) <= width:
            return text
    for num_shown in range(len(texts) - 1, 0, -1):
        text = f"{_BETWEEN.join(texts[:num_shown])} and {len(texts) - num_shown} more"
        if len(text) <= width:
            return text
    return texts[0][:width] if texts else ""


class StatusLine:
    """One row of a terminal, which is repainted every half second as long as it has parts."""

    def __init__(self, repaint_every_s: float = _REPAINT_EVERY_S) -> None:
        self._repaint_every_s = repaint_every_s
        self._lock = threading.RLock()
        self._parts: list[Part] = []
        self._stream: TextIO | None = None
        self._guards: list[_Guard] = []
        self._is_painted = self._is_mid_line = False
        self._has_changed = threading.Event()

    def add(self, part: Part, stream: TextIO) -> bool:
        """Show a part on the stream's terminal. Return False if `can_update` is false for the stream."""
        if not can_update(stream):
            return False
        with self._lock:
            self._parts.append(part)
            if self._stream is None:
                self._begin(stream)
            self._paint()
        return True

    def remove(self, part: Part) -> None:
        """Stop showing a part. When the last part is removed, the row is erased."""
        with self._lock:
            if part in self._parts:
                self._parts.remove(part)
            if not self._parts:
                self.end()
            else:
                self._paint()

    def end(self) -> None:
        """Erase the row and remove all parts, including those of threads that are still running."""
        with self._lock:
            self._clear()
            self._parts.clear()
            self._stream = None
            for guard in self._guards:
                guard.uninstall()
            self._guards.clear()
            self._has_changed.set()

    def write(self, text: str, stream: TextIO) -> None:
        """Write text to a stream, above the row."""
        with self._lock:
            self._clear()
            stream = _unguarded(stream)
            stream.write(text)
            stream.flush()
            # If the text does not end with a line break, the next text probably continues its last line.
            self._is_mid_line = not text.endswith("\n") if text else self._is_mid_line
            self._paint()

    def _begin(self, stream: TextIO) -> None:
        self._stream = _unguarded(stream)
        self._guards = [guard for name in ("stdout", "stderr") if (guard := _Guard.install(name, self)) is not None]
        self._has_changed = threading.Event()
        threading.Thread(target=self._keep_painting, args=(self._has_changed,), daemon=True).start()

    def _keep_painting(self, ended: threading.Event) -> None:
        while not ended.wait(self._repaint_every_s):
            with self._lock:
                if not ended.is_set():
                    self._paint()

    def _paint(self) -> None:
        if self._stream is None or self._is_mid_line:
            return
        # A row that fills the terminal to its last column would wrap.
        text = fit(self._parts, shutil.get_terminal_size().columns - 1)
        self._stream.write(f"{_CLEAR}{text}")
        self._stream.flush()
        self._is_painted = True

    def _clear(self) -> None:
        if self._stream is not None and self._is_painted:
            self._stream.write(_CLEAR)
            self._stream.flush()
            self._is_painted = False


class _Guard:
    """Replaces `sys.stdout` or `sys.stderr`, so that the output of other code appears above the row."""

    def __init__(self, name: str, stream: TextIO, row: StatusLine) -> None:
        self.stream = stream
        self._name, self._row = name, row

    @classmethod
    def install(cls, name: str, row: StatusLine) -> _Guard | None:
        """Replace a stream and return the guard.

        Returns None, and replaces nothing, if the stream already has a guard, or if it is not a terminal, since its
        output then cannot disturb the row.
        """
        stream: TextIO = getattr(sys, name)
        if isinstance(stream, cls) or not stream.isatty():
            return None
        guard = cls(name, stream, row)
        setattr(sys, name, guard)
        return guard

    def uninstall(self) -> None:
        if getattr(sys, self._name) is self:
            setattr(sys, self._name, self.stream)

    def write(self, text: str) -> int:
        self._row.write(text, self.stream)
        return len(text)

    def writelines(self, lines: Sequence[str]) -> None:
        self.write("".join(lines))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def _unguarded(stream: TextIO) -> TextIO:
    return stream.stream if isinstance(stream, _Guard) else stream
