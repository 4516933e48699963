"""A file system without hard links: a C library that is loaded into a process before the system's."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

_SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Each function behaves as usual outside NO_LINKS_UNDER. Its error is the number in an environment variable. */
static int fails(const char *path, const char *variable) {
    const char *under = getenv("NO_LINKS_UNDER"), *number = getenv(variable);
    if (under == NULL || number == NULL || strncmp(path, under, strlen(under)) != 0) return 0;
    errno = atoi(number);
    return 1;
}

static void die(const char *name, const char *moment) {
    const char *chosen = getenv("NO_LINKS_KILL"), *under = getenv("NO_LINKS_UNDER");
    if (chosen == NULL || under == NULL || strncmp(name, under, strlen(under)) != 0) return;
    if (strcmp(chosen, moment) == 0) kill(getpid(), SIGKILL);
}

int link(const char *file, const char *name) {
    if (getenv("NO_LINKS_LOSES_ANSWER") == NULL && fails(name, "NO_LINKS_ERROR")) return -1;
    int result = ((int (*)(const char *, const char *))dlsym(RTLD_NEXT, "link"))(file, name);
    return getenv("NO_LINKS_LOSES_ANSWER") != NULL && fails(name, "NO_LINKS_ERROR") ? -1 : result;
}

int renameat2(int old, const char *file, int new, const char *name, unsigned int flags) {
    if (fails(name, "NO_RENAMES_ERROR")) return -1;
    die(name, "before");
    int result = ((int (*)(int, const char *, int, const char *, unsigned int))dlsym(RTLD_NEXT, "renameat2"))(
        old, file, new, name, flags);
    if (result == 0) die(name, "after");
    return result == 0 && fails(name, "NO_RENAMES_LOSES_ANSWER") ? -1 : result;
}

int fsync(int file) {
    const char *chosen = getenv("NO_LINKS_KILL");
    if (chosen != NULL && strcmp(chosen, "unfinished") == 0 && ftruncate(file, 3) == 0) kill(getpid(), SIGKILL);
    return ((int (*)(int))dlsym(RTLD_NEXT, "fsync"))(file);
}
"""


def compile_library(folder: Path) -> Path:
    """Compile the library. Skips the test if the system has no C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("the system has no C compiler")
    source, library = folder / "no_hard_links.c", folder / "no_hard_links.so"
    source.write_text(_SOURCE)
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"], check=True)
    return library


def environment(library: Path, under: Path, error: int, **more: str) -> dict[str, str]:
    """The environment of a process in which `link` fails.

    Args:
        library: What `compile_library` returned.
        under: The folder in which `link` fails.
        error: The error number of `link`.
        more: `NO_RENAMES_ERROR`: the error number of exclusive renames. `NO_LINKS_LOSES_ANSWER`: create the link all
            the same. `NO_RENAMES_LOSES_ANSWER`: the error number of renames that succeed. `NO_LINKS_KILL`: kill the
            process `before` or `after` an exclusive rename, or while a file that is to be renamed is `unfinished`.
    """
    return {
        **os.environ,
        "LD_PRELOAD": str(library),
        "NO_LINKS_UNDER": str(under),
        "NO_LINKS_ERROR": str(int(error)),
        **more,
    }
