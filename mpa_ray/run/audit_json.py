"""Reads the JSON files of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from mpa_ray.errors import ConfigError, DamagedFile, may_pass
from mpa_ray.run.damage import SAME_COMMAND, Finding
from mpa_ray.run.run import Run

UNREADABLE = (ConfigError, DamagedFile, OSError, LookupError, TypeError, ValueError, AttributeError)
"""What reading a damaged file may raise. A changed bit can give a file any content."""


def json_finding(
    run: Run,
    path: str,
    remedy: str | None,
    *repairs: Callable[[], None],
    read: Callable[[str], Any] | None = None,
    is_required: bool = False,
) -> Iterator[Finding]:
    """Read a JSON file of the run, and yield a finding if it is damaged.

    Args:
        run: The run.
        path: The file.
        remedy: The remedy; None if the same command makes the file again after a repair.
        repairs: The repairs.
        read: Reads the file; by default `Run.read_json`.
        is_required: Whether a missing file is a finding, too.
    """
    try:
        (read or run.read_json)(path)
    except FileNotFoundError:
        if is_required:
            yield Finding(path, "it is missing", remedy or SAME_COMMAND, repairs)
    except UNREADABLE as error:
        if may_pass(error):
            raise
        yield Finding(path, problem_of(error), remedy or SAME_COMMAND, repairs)


def problem_of(error: BaseException) -> str:
    """What is wrong with a file, as a sentence without its path and its remedy."""
    if isinstance(error, DamagedFile):
        return error.problem
    return f"it cannot be read ({error})"
