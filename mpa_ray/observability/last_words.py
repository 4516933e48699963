"""Find out why a process died, from its log and its exit code."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator, Sequence
from itertools import takewhile

_MAX_ERROR_LENGTH = 1000
"""The maximum number of characters in an error. vLLM's error about too little memory takes half of them."""
_MAX_LINE_LENGTH = 160
"""The maximum number of characters of a line in a quoted log."""
_NUM_CONTINUED = 4
"""The maximum number of lines of an error's message."""
_REFERENCE = "For further information visit"
_NUM_LINES_READ = 120
"""The number of lines at the end of a log in which errors are searched for. An error before these lines probably did
not end the process."""

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_PREFIX = re.compile(
    r"^(\(\w+ pid=\d+\)\s*)?"
    r"((?:DEBUG|INFO|WARNING|ERROR|CRITICAL)\s+\d\d-\d\d \d\d:\d\d:\d\d \[[^\]]*\]\s?)?"
)
"""The prefix that vLLM writes before each line: the process, the level, the time, and the place in the code."""
_RAY_MARKS = (":job_id:", ":actor_name:", ":task_name:")
"""The prefixes of lines that Ray writes into logs for its own use."""
_TRACEBACK = "Traceback (most recent call last)"
_EXCEPTION = re.compile(r"^(?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception)(?:: .*)?$|^Fatal Python error: .*$")
_NATIVE = re.compile(r"what\(\):|\*\*\* SIG[A-Z]+ received|^Segmentation fault|^terminate called|std::bad_alloc")
_POINTER = re.compile(
    r"root cause|EngineDeadError|UserCodeException|Engine core initialization failed|died unexpectedly, shutting down|"
    r"CancelledError|ContextTerminated|ZMQError|BrokenPipeError|KeyboardInterrupt|SystemExit",
    re.IGNORECASE,
)
"""Matches errors that are only the consequence of another error."""


def names_no_cause(message: str) -> bool:
    """Whether an error's message only points to another error, such as "See root cause above"."""
    return _POINTER.search(message) is not None


def last_error(log: str) -> str | None:
    """Return the message of the last error in a log, in one line; None if the end of the log has no error.

    Errors that are only the consequence of another error are skipped.
    """
    lines = _lines(log)
    native = [number for number, line in enumerate(lines) if _NATIVE.search(line)]
    for numbers in (_exceptions(lines), native):
        errors = [number for number in numbers if not names_no_cause(lines[number])]
        if errors:
            first, *rest = lines[errors[-1] : errors[-1] + _NUM_CONTINUED]
            return _joined([first, *takewhile(lambda line: line.startswith(" "), rest)])
    return None


def last_lines(log: str, num_lines: int) -> list[str]:
    """Return the last lines of a log, without empty lines, colours and vLLM's prefixes. Long lines are cut."""
    return [_cut(line, _MAX_LINE_LENGTH) for line in _lines(log) if line.strip() and not line.startswith(_RAY_MARKS)][
        -num_lines:
    ]


def in_words(error: BaseException) -> str:
    """Return the class and the message of an error in one line.

    If the error wraps a remote error, as Ray's errors do, the class and the message are those of the remote error.
    """
    # The text of an error that Ray forwards has the tracebacks of all errors that led to it.
    if "\n" in str(error) and (last := last_error(str(error))) is not None:
        return last
    while isinstance(cause := getattr(error, "cause", None), BaseException):
        error = cause
    message = str(error)
    return _joined([f"{type(error).__name__}:" if message else type(error).__name__, *message.splitlines()])


def exit_in_words(exit_code: int | None) -> str:
    """Describe how a child process ended.

    Args:
        exit_code: The exit code as `multiprocessing` reports it: negative if a signal ended the process.
    """
    if exit_code is None:
        return "is still running"
    if exit_code >= 0:
        return f"ended with exit code {exit_code}"
    return f"was killed by {signal_name(-exit_code)}"


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _exceptions(lines: Sequence[str]) -> Iterator[int]:
    """Yield the indices of the lines that name an exception, with or without a traceback before them."""
    in_traceback = False
    for number, line in enumerate(lines):
        if _TRACEBACK in line:
            in_traceback = True
        elif line and not line.startswith(" ") and (in_traceback or _EXCEPTION.search(line)):
            in_traceback = False
            yield number


def _lines(log: str) -> list[str]:
    plain = (_COLOUR.sub("", line).rstrip() for line in log.splitlines()[-_NUM_LINES_READ:])
    return [_PREFIX.sub("", line) for line in plain]


def _joined(lines: Sequence[str]) -> str:
    """Join the lines of a message in one line, without references to documentation."""
    message = " ".join(line.strip() for line in lines if line.strip() and _REFERENCE not in line)
    return _cut(message, _MAX_ERROR_LENGTH)


def _cut(line: str, max_length: int) -> str:
    return line if len(line) <= max_length else f"{line[:max_length]}..."
