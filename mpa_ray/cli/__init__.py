"""The command `mpa-ray`. It parses the command line, prints help and errors, and returns exit codes.

This module imports the other modules only after it has checked the version of Python, so that the message about an
unsupported version is clear.
"""

from __future__ import annotations

import sys

import mpa_ray


def main(words: list[str] | None = None) -> int:
    """Run `mpa-ray WORDS` and return the exit code. By default, WORDS are the arguments of this process."""
    problem = mpa_ray._unsupported_python()
    if problem is not None:
        print(problem, file=sys.stderr)
        return 2
    from mpa_ray.cli.dispatch import run_command

    return run_command(sys.argv[1:] if words is None else words)
