"""The errors that a user can act on."""

from __future__ import annotations


class ConfigError(Exception):
    """Something in the set-up is wrong: raised before any work starts, naming the field, its value and the remedy."""

    def __init__(self, field: str, value: object, problem: str, remedy: str) -> None:
        self.field, self._rest = field, (value, problem, remedy)
        super().__init__(f"{field} = {value!r}: {problem} {remedy}")

    def of_field(self, field: str) -> ConfigError:
        """The same of a field that is called otherwise where the user wrote it."""
        return type(self)(field, *self._rest)

    def __reduce__(self) -> tuple[type[ConfigError], tuple[object, ...]]:
        return type(self), (self.field, *self._rest)


class RunError(Exception):
    """The run cannot go on; what was committed stays and a later run continues from it."""


class CannotWrite(RunError):
    """A file of the run cannot be written: a full disk, or a lack of permission."""

    def __init__(self, target: str, problem: str) -> None:
        self.target, self.problem = target, problem
        remedy = "Check its free space, your permissions and the connection."
        super().__init__(f"{target} cannot be written ({problem}). {remedy}")

    def __reduce__(self) -> tuple[type[CannotWrite], tuple[str, str]]:
        return CannotWrite, (self.target, self.problem)


class FingerprintMismatch(ConfigError):
    """The run directory holds results made under other settings."""
