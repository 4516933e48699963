"""Gives a finished file its name only if no file has that name, even if the file system has no hard links.

The file is complete before it gets its name, and it gets the name in one system call. So readers see the whole file or
none, and a process that is killed at any moment leaves no lock that others would have to wait for.
"""

from __future__ import annotations

import ctypes
import errno
import os
from enum import StrEnum
from pathlib import Path


class Creation(StrEnum):
    """How a storage creates a file only if it does not exist."""

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
"""What `link` fails with on file systems that have no hard links, or allow a file only one name."""
_NO_EXCLUSIVE_RENAME = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP})
_AT_FDCWD = -100
_RENAME_NOREPLACE = 1


def give_name(file: Path, name: Path) -> Creation:
    """Give a file another name in the same folder, only if no file has that name. The old name may remain.

    Raises:
        FileExistsError: a file has the name.
        NotExclusive: this is not possible on the file system.
    """
    try:
        # A link fails if the name exists; an ordinary rename would replace the file.
        os.link(file, name)
    except FileExistsError:
        # An NFS server may create the link but lose its answer, and then refuse the client's second request.
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
    # A server may rename the file but lose its answer, and then refuse the client's second request.
    if number in (errno.ENOENT, errno.EEXIST) and not file.exists() and _was_file(before, name):
        return
    if number in _NO_EXCLUSIVE_RENAME:
        problem = f"no hard links ({link_error.strerror}) and no exclusive renames ({os.strerror(number)})"
        raise NotExclusive(number, problem, str(name)) from link_error
    raise OSError(number, os.strerror(number), str(name)) from link_error


def _was_file(before: os.stat_result, name: Path) -> bool:
    """Whether a file now has this name. The inode may differ: some network file systems make up its number."""
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
