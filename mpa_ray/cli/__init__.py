"""The command `mpa-ray`. It parses the command line, prints help and errors, and gives exit codes.

This module imports nothing else at first, so that an unsupported version of Python gets a clear message.
"""

from __future__ import annotations

import sys

import mpa_ray


def main(words: list[str] | None = None) -> int:
    """Run the command line `mpa-ray WORDS`, by default that of this process, and return its exit code."""
    problem = mpa_ray._unsupported_python()
    if problem is not None:
        print(problem, file=sys.stderr)
        return 2
    from mpa_ray.cli.dispatch import run_command

    return run_command(sys.argv[1:] if words is None else words)
