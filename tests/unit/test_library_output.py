"""The lines of libraries in a command: not in the terminal, but in a log file; the command's own lines are shown."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

COMMAND = """
    import logging, os, subprocess, sys, warnings
    from pathlib import Path
    from mpa_ray.cli.run_job import run_job
    from mpa_ray.errors import RunError
    from mpa_ray.observability.library_output import LIBRARY_OUTPUT
    from mpa_ray.observability.progress import say, say_error

    def noise(when):
        warnings.warn(f"a library's warning {when}", FutureWarning, stacklevel=1)
        logging.getLogger("transformers.models").warning("a library's record %s", when)
        print(f"a library's line {when}", file=sys.stderr)
        os.write(2, f"a native line {when}\\n".encode())
        subprocess.run(["sh", "-c", f"echo a child\\\\'s line {when} >&2"], check=True)

    def main():
        LIBRARY_OUTPUT.redirect()
        noise("early")
        LIBRARY_OUTPUT.keep_in(Path(sys.argv[1]))
        noise("late")
        say("our line")
        say_error("our error")
        logging.getLogger("mpa_ray.engine").warning("our record")
        raise ENDING

    sys.exit(run_job(main))
"""
KINDS = ("a library's line", "a native line", "a child's line", "WARNING transformers.models: a library's record")
RAW = {f"{kind} {when}" for kind in KINDS for when in ("early", "late")}


def run_command(folder: Path, ending: str = 'RunError("it failed")', **environment: str) -> tuple[str, str, str]:
    """Standard output, standard error and the log file of a command that runs noisy libraries."""
    code = textwrap.dedent(COMMAND).replace("ENDING", ending)
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(folder), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    return done.stdout, done.stderr, "".join(path.read_text() for path in folder.glob("mpa_ray-*.log"))


def test_lines_of_libraries_are_in_a_file_alone(tmp_path: Path) -> None:
    output, errors, logged = run_command(tmp_path)
    assert output == "our line\n"
    assert errors.splitlines() == [
        "our error",
        "WARNING mpa_ray.engine: our record",
        "RunError: it failed",
    ]
    assert set(logged.splitlines()) >= RAW
    assert logged.count("FutureWarning: a library's warning") == 2
    assert len(list(tmp_path.iterdir())) == 1


def test_a_log_folder_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    code = COMMAND.replace("Path(sys.argv[1])", 'Path(sys.argv[1], "missing")')
    command = [sys.executable, "-c", textwrap.dedent(code).replace("ENDING", 'RunError("it failed")'), str(tmp_path)]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1] == "RunError: it failed"
    (logged,) = tmp_path.glob("mpa_ray-*.log")
    assert set(logged.read_text().splitlines()) >= RAW


@pytest.mark.parametrize("switch", [{"RAY_LOG_TO_DRIVER": "1"}, {"RAY_LOGGING_CONFIG_ENCODING": "JSON"}])
def test_a_switch_leaves_lines_of_libraries_in_the_terminal(tmp_path: Path, switch: dict[str, str]) -> None:
    _, errors, logged = run_command(tmp_path, **switch)
    assert {line for line in RAW if "record" not in line} <= set(errors.splitlines())
    assert "RunError: it failed" in errors
    assert not logged


def test_the_traceback_of_a_mistake_is_in_the_terminal(tmp_path: Path) -> None:
    _, errors, _ = run_command(tmp_path, ending='AttributeError("our mistake")')
    assert errors.splitlines()[-1] == "AttributeError: our mistake"


def test_what_was_captured_is_shown_if_ray_cannot_start(tmp_path: Path) -> None:
    code = COMMAND.replace("LIBRARY_OUTPUT.keep_in(Path(sys.argv[1]))", "LIBRARY_OUTPUT.reveal()")
    command = [sys.executable, "-c", textwrap.dedent(code).replace("ENDING", 'RunError("no Ray")'), str(tmp_path)]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert {line for line in RAW if line.endswith("early")} <= set(done.stderr.splitlines())
    assert list(tmp_path.iterdir()) == []
