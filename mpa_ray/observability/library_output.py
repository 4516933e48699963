"""Send the output of Ray, vLLM and other libraries to a log file instead of a command's terminal.

Libraries and their native code write to standard error. While a command runs Ray, the command's standard error is
therefore a file. The command's own messages still go to the terminal, through a copy of the original standard error.
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
    """Whether `RAY_LOG_TO_DRIVER` is set, so that the output of Ray's workers is shown. Ray shows it by default."""
    return os.environ.get("RAY_LOG_TO_DRIVER", "").lower() in ("1", "true")


def shows_library_lines() -> bool:
    """Whether libraries in this process write to its original standard error.

    They do so if the output of Ray's workers is shown, or if the job logs JSON records, which include those of Ray.
    """
    return shows_worker_lines() or "RAY_LOGGING_CONFIG_ENCODING" in os.environ


class LibraryOutput:
    """Controls where this process's standard error goes."""

    def __init__(self) -> None:
        self._may_redirect = False
        self._terminal: TextIO | None = None
        self._file: Path | None = None

    @property
    def stderr(self) -> TextIO:
        """The stream for the command's own messages: the terminal's standard error."""
        return self._terminal or sys.stderr

    @property
    def is_redirected(self) -> bool:
        return self._terminal is not None

    @contextmanager
    def may_redirect(self) -> Iterator[None]:
        """Allow `redirect` within the block. Only commands allow it; other programs keep their standard error."""
        self._may_redirect = not shows_library_lines()
        try:
            yield
        finally:
            self._may_redirect = False

    def redirect(self) -> None:
        """Send standard error to a temporary file from now on, if `may_redirect` allows it."""
        if not self._may_redirect or self.is_redirected:
            return
        sys.stderr.flush()
        descriptor, name = tempfile.mkstemp(prefix="mpa_ray-", suffix=".log")
        self._file = Path(name)
        self._terminal = os.fdopen(os.dup(_STDERR), "w", buffering=1, encoding="utf-8", errors="backslashreplace")
        os.dup2(descriptor, _STDERR)
        os.close(descriptor)

    def keep_in(self, folder: Path) -> None:
        """Move the temporary file to `folder` as `mpa_ray-PID.log`, and send further output to it there.

        If the folder is not writable, the file stays where it is.
        """
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
            # The folder is that of a cluster, which another user may have started.
            return
        self._file.unlink()
        self._file = kept

    def reveal(self) -> None:
        """Restore standard error, and print the content of the file, since it may say why something failed."""
        file = self._file
        self.restore()
        if file is not None:
            print(file.read_text(encoding="utf-8", errors="backslashreplace"), end="", file=sys.stderr, flush=True)
            file.unlink()

    def restore(self) -> None:
        """Restore the original standard error of the process."""
        if self._terminal is None:
            return
        sys.stderr.flush()
        self._terminal.flush()
        os.dup2(self._terminal.fileno(), _STDERR)
        self._terminal.close()
        self._terminal = self._file = None


LIBRARY_OUTPUT = LibraryOutput()
"""The instance for this process."""
