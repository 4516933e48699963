"""Gives a finished file its name, but only if no other file has that name. This also works on file systems without hard
links.

The file is complete before it gets its name, and it gets the name in one system call. So readers see either the whole
file or no file, and a killed process leaves no lock for which others would have to wait.
"""

from __future__ import annotations

import ctypes
import errno
import os
from enum import StrEnum
from pathlib import Path


class Creation(StrEnum):
    """How storage creates a file only if it does not exist."""

    HARD_LINK = "hard link"
    EXCLUSIVE_RENAME = "exclusive rename"
    CONDITIONAL_PUT = "conditional PUT"


class NotExclusive(OSError):
    """The file system has no operation that creates a whole file only if it does not exist."""


_NO_HARD_LINKS = frozenset(
    {
        *(errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EMLINK),
        *(errno.ENOSYS, errno.EINVAL, errno.EXDEV),
    }
)
"""The error numbers with which `link` fails on file systems that have no hard links or allow only one name for each
file."""
_NO_EXCLUSIVE_RENAME = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP})
_AT_FDCWD = -100
_RENAME_NOREPLACE = 1


def give_name(file: Path, name: Path) -> Creation:
    """Give a file another name in the same folder, but only if no file has that name. The old name may remain.

    Raises:
        FileExistsError: a file has the name.
        NotExclusive: the file system has no operation for this.
    """
    try:
        # A link fails if the name exists; an ordinary rename would replace the file.
        os.link(file, name)
    except FileExistsError:
        # If the response of an NFS server that has created the link is lost, the client repeats the request and is
        # refused.
        if not _is_same_file(file, name):
            raise
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        _rename_exclusively(file, name, error)
        return Creation.EXCLUSIVE_RENAME
    return Creation.HARD_LINK


def _rename_exclusively(file: Path, name: Path, link_error: OSError) -> None:
    number, before = errno.ENOSYS, file.stat()
    library = ctypes.CDLL(None, use_errno=True)
    # A C library from before 2018 does not have the function.
    if (rename := getattr(library, "renameat2", None)) is not None:
        if rename(_AT_FDCWD, os.fsencode(file), _AT_FDCWD, os.fsencode(name), _RENAME_NOREPLACE) == 0:
            return
        number = ctypes.get_errno()
    # If the response of a server that has renamed the file is lost, the client repeats the request and is refused.
    if number in (errno.ENOENT, errno.EEXIST) and not file.exists() and _was_file(before, name):
        return
    if number in _NO_EXCLUSIVE_RENAME:
        problem = f"no hard links ({link_error.strerror}) and no exclusive renames ({os.strerror(number)})"
        raise NotExclusive(number, problem, str(name)) from link_error
    raise OSError(number, os.strerror(number), str(name)) from link_error


def _was_file(before: os.stat_result, name: Path) -> bool:
    """Whether `name` is now the name of the file whose status was `before`. This does not compare inode numbers,
    because some network file systems invent new ones."""
    try:
        after = name.stat()
    except FileNotFoundError:
        return False
    return (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns)


def _is_same_file(file: Path, name: Path) -> bool:
    try:
        return file.samefile(name)
    except FileNotFoundError:
        return False
