"""Open the files that settings and lists name, and refuse pipes, devices and sockets."""

from __future__ import annotations

import os
import stat
from errno import EINVAL, EISDIR
from io import FileIO
from pathlib import Path

_KINDS = (
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def open_regular_file(path: str | Path) -> FileIO:
    """Open a regular file, or a link to one, for unbuffered reading.

    All other kinds of files are refused: opening a named pipe waits for a writer, reading a device may never end, and
    opening a device may change its state.

    Raises:
        OSError: the file cannot be opened, or is not a regular file.
    """
    size_of_regular_file(path)
    # Since the check, a named pipe may have replaced the file. With O_NONBLOCK, opening a named pipe does not wait.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        _check(os.fstat(descriptor), path)
    except OSError:
        os.close(descriptor)
        raise
    return FileIO(descriptor)


def read_regular_file(path: str | Path) -> bytes:
    """Return the content of a regular file. Raises OSError for the same reasons as `open_regular_file`."""
    with open_regular_file(path) as file:
        return file.readall()


def size_of_regular_file(path: str | Path) -> int:
    """Return the size of a regular file in bytes, without opening it. Raises OSError if it is missing or not
    regular."""
    status = os.stat(path)
    _check(status, path)
    return status.st_size


def _check(status: os.stat_result, path: str | Path) -> None:
    if stat.S_ISREG(status.st_mode):
        return
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(EISDIR, os.strerror(EISDIR), str(path))
    kind = next((name for is_kind, name in _KINDS if is_kind(status.st_mode)), "of another kind")
    raise OSError(EINVAL, f"is {kind}, not a regular file", str(path))
