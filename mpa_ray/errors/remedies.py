"""Sentences that tell the user what to do after an error, so that the same command continues the run.

Every message that ends a run takes its last sentence from this module, because the sentence depends on the kind of the
error and not on the code that reports the error.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator, Sequence
from enum import StrEnum

from mpa_ray.errors import CannotWrite, ConfigError, RunError, Unfinished, may_pass


class Remedy(StrEnum):
    """The sentence for each kind of error."""

    NONE = ""
    """The error's own message says what to do."""
    SAME_COMMAND = "Run the same command again to continue."
    CHECK = "Then run the same command again to continue."
    """The error's own message says what to check first."""
    FREE_SPACE = "Free some space, then run the same command again to continue."
    FEWER_FILES = "Raise the limit of open files (ulimit -n), then run the same command again to continue."
    PERMISSIONS = "Correct the permissions, then run the same command again to continue."
    SHORTER_SOCKET = (
        "The path of a socket is too long: set TMPDIR and RAY_TMPDIR to a folder with a short path, such as /tmp, then "
        "run the same command again to continue."
    )
    SHORTER_PATH = "Use a shorter path; the same command would fail again."
    DAMAGED = (
        "A file of the run may be missing or damaged. If so, the same command fails again, and mpa-ray audit RUN shows "
        "which file it is."
    )
    CAUSE = "Fix the cause, then run the same command again to continue."
    """For engines that die, training that fails, and limits that are exceeded."""
    POISON = (
        "The same command would fail again. If these images are valid, change the settings of the engine; it then "
        "processes them again. If they are not, raise limits.max_poison_images, so that they fail with the reason "
        "kills_engine, or exclude them from the source of a new run."
    )
    """For images that kill engines: with the same engine, they are not visited again."""
    UNKNOWN = (
        "This may be a bug in mpa_ray or in a library. If so, the same command fails again. The log has the details."
    )

    @property
    def may_pass(self) -> bool:
        """Whether the exit code is 3: the same command can continue the run with the same settings and files."""
        return self in (
            *(Remedy.SAME_COMMAND, Remedy.CHECK, Remedy.FREE_SPACE),
            *(Remedy.FEWER_FILES, Remedy.PERMISSIONS),
        )


_BY_ERRNO = {
    errno.ENOSPC: Remedy.FREE_SPACE,
    errno.EDQUOT: Remedy.FREE_SPACE,
    errno.EMFILE: Remedy.FEWER_FILES,
    errno.ENFILE: Remedy.FEWER_FILES,
    errno.EACCES: Remedy.PERMISSIONS,
    errno.EPERM: Remedy.PERMISSIONS,
    errno.EROFS: Remedy.PERMISSIONS,
    errno.ENAMETOOLONG: Remedy.SHORTER_PATH,
    errno.ENOENT: Remedy.DAMAGED,
}
_OWN_REMEDY = "same command"
"""A message with these words already tells the user what to do."""
_BY_WORDS = (
    (re.compile(r"AF_UNIX path|ipc path .* is longer than"), Remedy.SHORTER_SOCKET),
    (re.compile(r"CannotWrite\b"), Remedy.CHECK),
    (re.compile(r"No space left on device|Disk quota exceeded"), Remedy.FREE_SPACE),
    (re.compile(r"Too many open files"), Remedy.FEWER_FILES),
    (re.compile(r"TransientError|AccessLost|LostOwnership|were ended from outside"), Remedy.SAME_COMMAND),
    (re.compile(r"ArrowInvalid|JSONDecodeError|magic bytes|Couldn't deserialize"), Remedy.DAMAGED),
)
"""Remedies for errors of other processes, of which only the message is known. The first pattern that is found in the
message decides."""
_LOST_PROCESSES = re.compile(
    r"(Actor\w*|Crashed|NodeDied|OutOfMemory|ObjectLost|ObjectFetch\w*|Owner\w*|Cancelled|System|Rpc|Channel\w*)Error$"
)
"""Ray's errors about processes, nodes and objects that are gone."""


def what_continues(error: BaseException | str) -> Remedy:
    """The sentence that ends the message about an error.

    Args:
        error: The error, or its message if it was raised in another process.
    """
    if isinstance(error, str):
        by_words = _by_words(error)
        return Remedy.CAUSE if by_words is None else by_words
    if isinstance(error, KeyboardInterrupt):
        return Remedy.SAME_COMMAND
    if isinstance(error, ConfigError):
        return Remedy.SAME_COMMAND if may_pass(error) else Remedy.NONE
    links = list(_chain(error))
    by_words = next(filter(None, (_by_words(str(link)) for link in links)), None)
    if _OWN_REMEDY in str(error):
        return Remedy.NONE
    if any(isinstance(link, CannotWrite) for link in links):
        return Remedy.CHECK
    if by_words is not None or (by_words := _by_errno(links)) is not None:
        return by_words
    if any(isinstance(link, Unfinished) or may_pass(link) for link in links):
        return Remedy.SAME_COMMAND
    return Remedy.CAUSE if isinstance(error, RunError) else _of_others(links)


def continues_at_once(error: BaseException) -> bool:
    """Whether the same command can continue the run immediately, without any other action of the user."""
    return what_continues(error) is Remedy.SAME_COMMAND or Remedy.SAME_COMMAND in str(error)


def _by_words(words: str) -> Remedy | None:
    if _OWN_REMEDY in words:
        return Remedy.NONE
    return next((remedy for form, remedy in _BY_WORDS if form.search(words)), None)


def _by_errno(links: Sequence[BaseException]) -> Remedy | None:
    numbers = (link.errno for link in links if isinstance(link, OSError))
    return next((_BY_ERRNO[number] for number in numbers if number in _BY_ERRNO), None)


def _of_others(links: Sequence[BaseException]) -> Remedy:
    """The remedy for an error of a library, if neither its message nor its error number decides."""
    kind = type(links[0])
    if any(isinstance(link, ValueError) for link in links):
        # pyarrow, json and codecs raise a ValueError if a file is damaged.
        return Remedy.DAMAGED
    if any(isinstance(link, OSError) for link in links):
        return Remedy.CAUSE
    if len(links) == 1 and kind.__module__.startswith("ray.") and _LOST_PROCESSES.search(kind.__name__):
        return Remedy.SAME_COMMAND
    return Remedy.UNKNOWN


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and the errors that caused it. Some of Ray's errors hold their cause in `cause`."""
    link: BaseException | None = error
    while link is not None:
        yield link
        inner = getattr(link, "cause", None)
        link = inner if isinstance(inner, BaseException) else link.__cause__
