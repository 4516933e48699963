"""Errors that the user can fix."""

from __future__ import annotations


class ConfigError(Exception):
    """A setting is wrong. It is raised before any work starts, and names the field, its value and the remedy."""

    def __init__(self, field: str, value: object, problem: str, remedy: str) -> None:
        self.field, self._rest = field, (value, problem, remedy)
        super().__init__(f"{field} = {value!r}: {problem} {remedy}")

    def with_field(self, field: str) -> ConfigError:
        """The same error with the name that the user knows the field by."""
        return type(self)(field, *self._rest)

    def __reduce__(self) -> tuple[type[ConfigError], tuple[object, ...]]:
        return type(self), (self.field, *self._rest)


class RunError(Exception):
    """The run cannot continue. Committed results are kept, and the same command continues from them."""


class CannotWrite(RunError):
    """A file of the run cannot be written, because of a full disk or missing permissions."""

    def __init__(self, target: str, problem: str) -> None:
        self.target, self.problem = target, problem
        remedy = "Check its free space, your permissions and the connection."
        super().__init__(f"{target} cannot be written ({problem}). {remedy}")

    def __reduce__(self) -> tuple[type[CannotWrite], tuple[str, str]]:
        return CannotWrite, (self.target, self.problem)


class FingerprintMismatch(ConfigError):
    """The run directory holds results that were made with other settings."""
