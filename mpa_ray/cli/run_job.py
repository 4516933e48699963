"""Turn the outcome of a command into a message and an exit code."""

from __future__ import annotations

import atexit
import io
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import NoReturn

from mpa_ray.errors import ConfigError, NoSuchBucket, RunError, Unfinished, may_pass
from mpa_ray.observability.library_output import LIBRARY_OUTPUT
from mpa_ray.observability.log_context import redact_log_records
from mpa_ray.observability.progress import end_updating_line, say_error
from mpa_ray.redaction import without_secrets

_WRONG_PATHS = (PermissionError, NotADirectoryError, IsADirectoryError, NoSuchBucket)
DONE, FAILED, WRONG_SETUP, UNFINISHED, INTERRUPTED = 0, 1, 2, 3, 130

EXIT_CODES = """\
exit codes:
  0    done
  1    failed, or the audit found problems, or a planned model does not fit its GPUs
  2    wrong set-up: an option, a setting or the installation; nothing was started
  3    unfinished for a reason that may be temporary, such as a full disk or an unreachable object store
  130  interrupted by Ctrl-C or SIGTERM
After 1, 3 and 130, run the same command again to continue where the run ended."""

_INSTALL = (
    "Install mpa-ray with its dependencies: run mpa-ray setup-cpu on a machine without a GPU, and otherwise pip "
    "install with its wheel file, or pip install . in a clone."
)


def run_job(main: Callable[[], int | None]) -> int:
    """Run a command and return its exit code, which `EXIT_CODES` describes; errors go to standard error.

    SIGTERM, which `ray job stop` and schedulers send, interrupts the command like Ctrl-C.
    """
    if "RAY_LOGGING_CONFIG_ENCODING" not in os.environ:
        logging.basicConfig(
            level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", handlers=[_LogHandler()]
        )
    _prepare_output()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _interrupt)
    interrupted = threading.Event()
    # Exit handlers run in reverse order, so this one runs after Ray's, which `main` registers later.
    atexit.register(_end_process_after_interrupt, interrupted)
    try:
        with LIBRARY_OUTPUT.may_redirect():
            code = main() or DONE
        sys.stdout.flush()
        return code
    except ConfigError as error:
        if may_pass(error):
            # The setting names a file that could not be read, for a reason that may be temporary.
            return _failed("Unfinished", error, UNFINISHED)
        return _failed("ConfigError", error, WRONG_SETUP)
    except Unfinished as error:
        return _failed("Unfinished", error, UNFINISHED)
    except RunError as error:
        return _failed("RunError", error, FAILED)
    except BrokenPipeError:
        # The reader of a pipe, such as `head`, has ended. Python would fail again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except _WRONG_PATHS as error:
        return _failed("ConfigError", f"{error}. Check the path and its permissions.", WRONG_SETUP)
    except OSError as error:
        # A file of the run could not be read or written at the start.
        problem = f"{type(error).__name__}: {error}. Run the same command again to continue."
        return _failed("Unfinished", problem, UNFINISHED)
    except ModuleNotFoundError as error:
        return _missing_package(error)
    except KeyboardInterrupt:
        # Other threads now lose their connection to Ray; their errors would only confuse.
        threading.excepthook = lambda _: None
        logging.disable()
        interrupted.set()
        return _failed("Interrupted", "run the same command again to continue.", INTERRUPTED)
    except BaseException:
        # This is a bug: Python prints the traceback to standard error.
        LIBRARY_OUTPUT.restore()
        raise
    finally:
        end_updating_line()


class _LogHandler(logging.Handler):
    """Writes our own records to the terminal; the records of libraries go where their other output goes."""

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
    """Hide secrets in logs and tracebacks, and print characters that the output's encoding lacks as escapes."""
    redact_log_records()
    sys.excepthook = _print_traceback
    # A stream is None if it was closed when the process was started, as it is for daemons.
    sys.stdout = sys.stdout or Path(os.devnull).open("w")  # noqa: SIM115
    sys.stderr = sys.stderr or Path(os.devnull).open("w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        # Tests and notebooks replace the streams by other objects.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _print_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    text = "".join(traceback.format_exception(kind, error, trace))
    print(without_secrets(text), end="", file=sys.stderr)


def _missing_package(error: ModuleNotFoundError) -> int:
    """Report the package to install.

    If a module of mpa_ray itself is missing, raise the error, since installing a package would not help.
    """
    package = (error.name or "").partition(".")[0]
    if package in ("", "mpa_ray"):
        LIBRARY_OUTPUT.restore()
        raise error
    from mpa_ray.engine.vllm.version import INSTALL_VLLM

    remedy = INSTALL_VLLM if package == "vllm" else _INSTALL
    return _failed("ConfigError", f"the package {package} is not installed. {remedy}", WRONG_SETUP)


def _end_process_after_interrupt(interrupted: threading.Event) -> None:
    """End the process at once, with the exit code of an interrupt.

    An interrupt in Ray's native code corrupts objects (Ray 2.60). Deleting them at exit would end the process with exit
    code 134.
    """
    if interrupted.is_set() and "ray" in sys.modules:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(INTERRUPTED)


def _interrupt(*_: object) -> NoReturn:
    """Interrupt the command like Ctrl-C, but only once: Ray may send SIGTERM to the same process twice."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt
