"""Errors that the user can fix."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

_MAX_VALUE_LENGTH = 300
"""Longer values, such as a whole branch of the configuration, are cut in messages."""
_PASSWORD = re.compile(r"(?<=://)[^\s/'\"@:]*:[^\s/'\"]*(?=@)")
"""The user name and password of a URL."""


def without_passwords(text: str) -> str:
    """The text with `***` in place of the user name and password of each URL."""
    return _PASSWORD.sub("***", text)


def did_you_mean(word: str, choices: Iterable[str], most: int = 2) -> str:
    """A question that names the most similar choices, such as `Did you mean align?`; empty if none is similar."""
    close = difflib.get_close_matches(word, list(dict.fromkeys(choices)), n=most, cutoff=0.7)
    return f"Did you mean {' or '.join(close)}?" if close else ""


class ConfigError(Exception):
    """A setting is wrong. It is raised before any work starts, and names the field, its value and the remedy.

    The message cuts long values, and hides the passwords of URLs.
    """

    def __init__(self, field: str, value: object, problem: str, remedy: str) -> None:
        self.field, self._rest = field, (value, problem, remedy)
        shown = repr(value)
        if len(shown) > _MAX_VALUE_LENGTH:
            shown = f"{shown[:_MAX_VALUE_LENGTH]}..."
        super().__init__(without_passwords(f"{field} = {shown}: {problem} {remedy}"))

    def with_field(self, field: str) -> ConfigError:
        """The same error, with the field's name as the user knows it."""
        return type(self)(field, *self._rest)

    def __reduce__(self) -> tuple[type[ConfigError], tuple[object, ...]]:
        return type(self), (self.field, *self._rest)


class RunError(Exception):
    """The run cannot continue. Committed results are kept; the same command, run again, continues from them."""


class Unfinished(RunError):
    """The run stopped for a reason that may be temporary, such as an unreachable object store. Exit code 3."""


class CannotWrite(Unfinished):
    """A file of the run cannot be written, because of a full disk or missing permissions."""

    def __init__(self, target: str, problem: str) -> None:
        self.target, self.problem = target, problem
        remedy = "Check its free space, your permissions and the connection."
        super().__init__(f"{target} cannot be written ({problem}). {remedy}")

    def __reduce__(self) -> tuple[type[CannotWrite], tuple[str, str]]:
        return CannotWrite, (self.target, self.problem)


class FingerprintMismatch(ConfigError):
    """The run directory holds results that were made with other settings."""
