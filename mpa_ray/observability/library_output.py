"""Keeps the lines of Ray, vLLM and other libraries out of a command's terminal, and in a log file.

Libraries, and the native code below them, write to standard error. While a command runs Ray, its standard error is
therefore a file; the command's own messages go to the terminal's standard error, which is kept for them.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

_STDERR = 2


def shows_worker_lines() -> bool:
    """Whether the user wants the lines of Ray's workers: `RAY_LOG_TO_DRIVER`, Ray's own switch, off by default here."""
    return os.environ.get("RAY_LOG_TO_DRIVER", "").lower() in ("1", "true")


def shows_library_lines() -> bool:
    """Whether the lines of libraries in this process stay in its standard error.

    A job that asks for JSON records wants those of Ray, too.
    """
    return shows_worker_lines() or "RAY_LOGGING_CONFIG_ENCODING" in os.environ


class LibraryOutput:
    """Where this process's standard error goes."""

    def __init__(self) -> None:
        self._may_redirect = False
        self._terminal: TextIO | None = None
        self._file: Path | None = None

    @property
    def stderr(self) -> TextIO:
        """For the command's own messages: the terminal's standard error."""
        return self._terminal or sys.stderr

    @property
    def is_redirected(self) -> bool:
        return self._terminal is not None

    @contextmanager
    def may_redirect(self) -> Iterator[None]:
        """Allow `redirect` in the block. Commands do this; a program that uses the library keeps its standard error."""
        self._may_redirect = not shows_library_lines()
        try:
            yield
        finally:
            self._may_redirect = False

    def redirect(self) -> None:
        """Send standard error to a temporary file from now on, if that is allowed."""
        if not self._may_redirect or self.is_redirected:
            return
        sys.stderr.flush()
        descriptor, name = tempfile.mkstemp(prefix="mpa_ray-", suffix=".log")
        self._file = Path(name)
        self._terminal = os.fdopen(os.dup(_STDERR), "w", buffering=1, encoding="utf-8", errors="backslashreplace")
        os.dup2(descriptor, _STDERR)
        os.close(descriptor)

    def keep_in(self, folder: Path) -> None:
        """Continue the file in a folder of log files, as `mpa_ray-PID.log`; stay where it is if that is not allowed."""
        if self._file is None:
            return
        sys.stderr.flush()
        kept = folder / f"mpa_ray-{os.getpid()}.log"
        try:
            with kept.open("ab") as file:
                file.write(self._file.read_bytes())
                file.flush()
                os.dup2(file.fileno(), _STDERR)
        except OSError:
            # The cluster may belong to another user.
            return
        self._file.unlink()
        self._file = kept

    def reveal(self) -> None:
        """Restore standard error and show what was sent to the file: something failed, and the lines may say why."""
        file = self._file
        self.restore()
        if file is not None:
            print(file.read_text(encoding="utf-8", errors="backslashreplace"), end="", file=sys.stderr, flush=True)
            file.unlink()

    def restore(self) -> None:
        """Give the process its standard error back."""
        if self._terminal is None:
            return
        sys.stderr.flush()
        self._terminal.flush()
        os.dup2(self._terminal.fileno(), _STDERR)
        self._terminal.close()
        self._terminal = self._file = None


LIBRARY_OUTPUT = LibraryOutput()
"""Of this process."""
