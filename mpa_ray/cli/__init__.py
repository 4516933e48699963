"""The command `mpa-ray`. It parses the command line, prints help and errors, and returns exit codes.

This module imports the other modules only after it has checked the version of Python, so that the message about an
unsupported version is clear.
"""

from __future__ import annotations

import sys

import mpa_ray


def main(words: list[str] | None = None, python: tuple[int, ...] = sys.version_info[:2]) -> int:
    """Run `mpa-ray WORDS` and return the exit code. By default, WORDS are the arguments of this process.

    Args:
        words: The command and its options.
        python: The version of Python; the command ends with a message if it is not supported.
    """
    problem = mpa_ray._unsupported_python(python)
    if problem is not None:
        print(problem, file=sys.stderr)
        return 2
    from mpa_ray.cli.dispatch import run_command

    return run_command(sys.argv[1:] if words is None else words)
