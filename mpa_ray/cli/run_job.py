"""Turn the outcome of a command into a message and an exit code."""

from __future__ import annotations

import io
import logging
import os
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from mpa_ray.cli.interrupts import Interrupts
from mpa_ray.errors import ConfigError, NoSuchBucket, RunError, Unfinished, may_pass
from mpa_ray.errors.remedies import Remedy, what_continues
from mpa_ray.observability.library_output import LIBRARY_OUTPUT
from mpa_ray.observability.log_context import redact_log_records
from mpa_ray.observability.progress import end_updating_line, say_error
from mpa_ray.redaction import without_secrets
from mpa_ray.storage.request_pace import short_first_contact

_WRONG_PATHS = (PermissionError, NotADirectoryError, IsADirectoryError, NoSuchBucket)
DONE, FAILED, WRONG_SETUP, UNFINISHED, INTERRUPTED = 0, 1, 2, 3, 130

EXIT_CODES = """\
exit codes:
  0    done
  1    failed, or the audit found problems, or a planned model does not fit its GPUs
  2    wrong set-up: an option, a setting or the installation; nothing was started
  3    unfinished for a reason that may be temporary, such as a full disk or an unreachable object store
  130  interrupted by Ctrl-C or SIGTERM
After 130, run the same command again to continue where the run ended. After 1 and 3, so does the same command once the
problem in the message is solved; the message says how."""

_INSTALL = (
    "Install mpa-ray with its dependencies: run mpa-ray setup-cpu on a machine without a GPU, and otherwise pip "
    "install with its wheel file, or pip install . in a clone."
)


def run_job(main: Callable[[], int | None]) -> int:
    """Run a command and return its exit code (see `EXIT_CODES`). Errors are printed to standard error.

    SIGTERM, which `ray job stop` and schedulers send, interrupts the command like Ctrl-C.
    """
    if "RAY_LOGGING_CONFIG_ENCODING" not in os.environ:
        logging.basicConfig(
            level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", handlers=[_LogHandler()]
        )
    _prepare_output()
    interrupts = Interrupts(INTERRUPTED, _say_interrupted)
    code = INTERRUPTED
    with suppress(KeyboardInterrupt), interrupts.handled():
        code = _run(main, interrupts)
    return interrupts.end() if interrupts.is_raised or code == INTERRUPTED else code


def _run(main: Callable[[], int | None], interrupts: Interrupts) -> int:
    """Run a command, and report its error. Raises KeyboardInterrupt if it was interrupted."""
    try:
        with LIBRARY_OUTPUT.may_redirect(), short_first_contact():
            code = main() or DONE
        sys.stdout.flush()
        return code
    except BaseException as error:
        # The error may be a consequence of an interrupt.
        if interrupts.is_raised or isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt from error
        reported = _report(error)
        if reported is None:
            # This is a bug: Python prints the traceback to standard error.
            LIBRARY_OUTPUT.restore()
            raise
        return reported
    finally:
        end_updating_line()


def _report(error: BaseException) -> int | None:
    """Print an error in one line, and return the exit code; None if the error is a bug."""
    # A ConfigError can have a temporary cause: for example, a file that a setting names cannot be read now.
    if isinstance(error, Unfinished) or (isinstance(error, ConfigError) and may_pass(error)):
        return _failed("Unfinished", error, UNFINISHED)
    if isinstance(error, ConfigError):
        return _failed("ConfigError", error, WRONG_SETUP)
    if isinstance(error, RunError):
        return _failed("RunError", error, FAILED)
    if isinstance(error, BrokenPipeError):
        # The reader of a pipe, such as `head`, has ended. Python would fail again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    if isinstance(error, _WRONG_PATHS):
        return _failed("ConfigError", f"{error}. Check the path and its permissions.", WRONG_SETUP)
    if isinstance(error, OSError):
        # A file of the run could not be read or written at the start.
        remedy = what_continues(error)
        kind, code = ("Unfinished", UNFINISHED) if remedy.may_pass else ("RunError", FAILED)
        return _failed(kind, f"{type(error).__name__}: {error}. {remedy}".rstrip(), code)
    return _missing_package(error) if isinstance(error, ModuleNotFoundError) else None


def _say_interrupted() -> None:
    # Other threads now lose their connection to Ray; their errors would only confuse the user.
    threading.excepthook = lambda _: None
    logging.disable()
    _failed("Interrupted", Remedy.SAME_COMMAND[0].lower() + Remedy.SAME_COMMAND[1:], INTERRUPTED)


class _LogHandler(logging.Handler):
    """Writes our own records to the terminal; libraries' records go where other output of libraries goes."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.partition(".")[0] == "mpa_ray":
            say_error(self.format(record))
        else:
            print(self.format(record), file=sys.stderr)


def _failed(kind: str, problem: object, code: int) -> int:
    end_updating_line()
    say_error(f"{kind}: {problem}")
    return code


def _prepare_output() -> None:
    """Hide secrets in logs and tracebacks, and print an escape for each character that the output's encoding lacks."""
    redact_log_records()
    sys.excepthook = _print_traceback
    # A stream is None if it was closed when the process was started, for example as a daemon.
    sys.stdout = sys.stdout or Path(os.devnull).open("w")  # noqa: SIM115
    sys.stderr = sys.stderr or Path(os.devnull).open("w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        # Tests and notebooks replace the streams with other objects.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _print_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    text = "".join(traceback.format_exception(kind, error, trace))
    print(without_secrets(text), end="", file=sys.stderr)


def _missing_package(error: ModuleNotFoundError) -> int | None:
    """Report the package to install.

    If a module of mpa_ray itself is missing, that is a bug, since installing a package would not help.
    """
    package = (error.name or "").partition(".")[0]
    if package in ("", "mpa_ray"):
        return None
    from mpa_ray.engine.vllm.version import INSTALL_VLLM

    remedy = INSTALL_VLLM if package == "vllm" else _INSTALL
    return _failed("ConfigError", f"the package {package} is not installed. {remedy}", WRONG_SETUP)
