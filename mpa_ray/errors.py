"""The errors that a user can act on."""

from __future__ import annotations


class ConfigError(Exception):
    """Something in the set-up is wrong: raised before any work starts, naming the field, its value and the remedy."""

    def __init__(self, field: str, value: object, problem: str, remedy: str) -> None:
        self.field = field
        super().__init__(f"{field} = {value!r}: {problem} {remedy}")


class RunError(Exception):
    """The run cannot go on; what was committed stays and a later run continues from it."""


class FingerprintMismatch(ConfigError):
    """The run directory holds results made under other settings."""
