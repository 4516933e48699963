"""The errors that mpa_ray raises for its users, and the test of whether an error may be temporary."""

from __future__ import annotations

import difflib
import errno
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from mpa_ray.redaction import without_secrets
from mpa_ray.textual import readable

_MAX_VALUE_LENGTH = 300
"""In characters. Messages cut longer values, such as a whole branch of the configuration."""
_MIN_BEGINNING = 3
"""In characters. A shorter prefix would fit too many names."""


def did_you_mean(word: object, choices: Iterable[str], most: int = 2) -> str:
    """Return a question with the most similar choices, such as `Did you mean align?`, or "" if no choice is similar.

    Upper and lower case count as equal. A prefix of a choice is also similar to the choice, such as `eval` to
    `evaluate`.
    """
    text = str(word).lower()
    by_text = {choice.lower(): choice for choice in reversed(list(choices))}
    close = difflib.get_close_matches(text, by_text, n=most, cutoff=0.7)
    begun = [choice for choice in reversed(by_text) if len(text) >= _MIN_BEGINNING and choice.startswith(text)]
    similar = [by_text[choice] for choice in dict.fromkeys([*close, *begun])][:most]
    return f"Did you mean {' or '.join(similar)}?" if similar else ""


class ConfigError(Exception):
    """A setting is wrong. The error names the field, its value and the remedy.

    If possible, it is raised before any work starts. The message cuts long values and hides secrets.
    """

    def __init__(self, field: str, value: object, problem: str, remedy: str) -> None:
        self.field, self.value, self._rest = field, value, (value, problem, remedy)
        # Secrets are hidden before the value is cut, because a part of a secret may not be recognised as a secret.
        shown = without_secrets(f"{field} = {value!r}")
        longest = len(field) + len(" = ") + _MAX_VALUE_LENGTH
        if len(shown) > longest:
            shown = f"{shown[:longest]}..."
        super().__init__(readable(f"{shown}: {without_secrets(f'{problem} {remedy}')}"))

    def with_field(self, field: str, value: object = None) -> ConfigError:
        """Return the same error with another name of the field, and with another value if one is given.

        Args:
            field: The field's name in the user's configuration.
            value: The field's value in the user's configuration; None keeps the value of this error.
        """
        old_value, problem, remedy = self._rest
        return type(self)(field, old_value if value is None else value, problem, remedy)

    def with_branch(self, branch: str, in_configuration: str) -> ConfigError:
        """Return the same error with a branch of the configuration renamed, in the field and in the remedy.

        Args:
            branch: The branch's name in this error, such as `benchmark`.
            in_configuration: The branch's name in the user's configuration, such as `evaluate.benchmarks.0`.
        """
        value, problem, remedy = self._rest
        setting = re.compile(rf"(?<!\S){re.escape(branch)}\.(?=[a-z])")
        field, remedy = (setting.sub(lambda _: f"{in_configuration}.", text) for text in (self.field, remedy))
        return type(self)(field, value, problem, remedy)

    def __reduce__(self) -> tuple[type[ConfigError], tuple[object, ...]]:
        return type(self), (self.field, *self._rest)


@contextmanager
def uri_in(field: str, value: str) -> Iterator[None]:
    """Replace the field `uri` of errors in the block with the name of the setting that contains the URI."""
    try:
        yield
    except ConfigError as error:
        if error.field != "uri":
            raise
        raise error.with_field(field, value) from error


class RunError(Exception):
    """The run cannot continue. Committed results are kept; the same command, run again, continues from them.

    The message hides secrets.
    """

    def __init__(self, message: str) -> None:
        super().__init__(readable(without_secrets(message)))


class Unfinished(RunError):
    """The run stopped for a reason that may be temporary, such as an unreachable object store. The exit code is 3."""


class AccessLost(Unfinished):
    """An object store refuses every request: the credentials have expired or were replaced, or the clock is wrong."""


class NoSuchBucket(OSError):
    """A URI names a bucket that the object store does not have, or the name is not valid for a bucket."""


class TransientError(OSError):
    """All attempts to read or write a file failed, for a reason that may be temporary."""


_TRANSIENT_ERRNOS = frozenset(
    {
        errno.EAGAIN,
        errno.EBUSY,
        errno.EIO,
        errno.EMFILE,
        errno.ENFILE,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ENETDOWN,
        errno.ENETRESET,
        errno.ENETUNREACH,
        errno.ENOBUFS,
        errno.ENOTCONN,
        errno.EREMOTEIO,
        errno.ESHUTDOWN,
        errno.ESTALE,
        errno.ETIMEDOUT,
    }
)
"""Error numbers of a mounted folder whose server or connection fails, and of a machine that has too many open files or
sockets."""


def may_pass(error: BaseException | None) -> bool:
    """Whether an error of reading or writing, or one of its causes, may be temporary.

    A missing file, a refused permission and a full disk do not count as temporary.
    """
    if isinstance(error, AccessLost | TransientError | ConnectionError | TimeoutError):
        return True
    if isinstance(error, OSError) and error.errno in _TRANSIENT_ERRNOS:
        return True
    return error is not None and may_pass(error.__cause__)


class CannotWrite(Unfinished):
    """A file of the run cannot be written, because of a full disk or missing permissions."""

    def __init__(self, target: str, problem: str) -> None:
        self.target, self.problem = target, problem
        remedy = "Check its free space, your permissions and the connection."
        super().__init__(f"{target} cannot be written ({problem}). {remedy}")

    def __reduce__(self) -> tuple[type[CannotWrite], tuple[str, str]]:
        return CannotWrite, (self.target, self.problem)


class DamagedFile(RunError, ValueError):
    """A file of the run is missing, or does not hold what was written. A run replaces files as a whole, so the damage
    is that of a disk or of a copy."""

    def __init__(self, path: str, problem: str) -> None:
        self.path, self.problem = path, problem
        super().__init__(
            f"{path} is damaged ({problem}). Restore it from a copy of the run, or run mpa-ray audit RUN --repair and "
            "then the same command, which makes it again."
        )

    def __reduce__(self) -> tuple[type[DamagedFile], tuple[str, str]]:
        return DamagedFile, (self.path, self.problem)


class FingerprintMismatch(ConfigError):
    """The run directory holds results that were made with other settings."""
