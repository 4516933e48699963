"""SIGTERM and Ctrl-C at any moment of a command, in separate processes and without Ray."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINE = "Interrupted: run the same command again to continue.\n"
BEGIN = """
import atexit, os, signal, sys, threading, time
from mpa_ray.cli import interrupts
from mpa_ray.cli.run_job import run_job
from mpa_ray.errors import RunError
def begin():
    print("begun", flush=True)
def stop(number=signal.SIGTERM):
    os.kill(os.getpid(), number)
"""
MOMENTS = {
    "at work": "begin(); time.sleep(100)",
    "in a thread that is waited for": "t = threading.Thread(target=time.sleep, args=(100,), daemon=True); t.start()\n"
    "    begin()\n    while t.is_alive(): t.join(1.0)",
    "an error follows": "begin()\n    try: time.sleep(100)\n    finally: raise RunError('an engine died')",
    "a bug follows": "begin()\n    try: time.sleep(100)\n    finally: raise KeyError('x')",
    "it becomes another error": "begin()\n    try: time.sleep(100)\n    except BaseException: raise RunError('x')",
    "it is dropped at the end": "begin()\n    try: time.sleep(100)\n    except BaseException: pass",
    "it is dropped and work goes on": "begin()\n    try: time.sleep(100)\n"
    "    except BaseException: pass\n    time.sleep(100)",
    "it is exited": "begin()\n    try: time.sleep(100)\n    except BaseException: sys.exit(0)",
    # The kernel repeats this read after a signal, so no Python code runs in the main thread.
    "native code does not return": "import ctypes; pipe = os.pipe(); signal.siginterrupt(signal.SIGTERM, False)\n"
    "    begin(); ctypes.CDLL(None).read(pipe[0], ctypes.create_string_buffer(1), 1)",
}


def run(body: str, number: signal.Signals, times: int = 1, before: str = "") -> tuple[int, str]:
    """Run a command with this body and send it a signal once it has begun; returns the exit code and its errors."""
    program = (
        f"{BEGIN}\n{before}\ninterrupts.Interrupts.__init__.__defaults__ = (0.5,)\n"
        f"def main():\n    {body}\nsys.exit(run_job(main))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        for _ in range(times):
            process.send_signal(number)
        _, errors = process.communicate(timeout=30)
    return process.returncode, errors


@pytest.mark.parametrize("moment", MOMENTS)
def test_sigterm_ends_a_command_with_130_and_one_line(moment: str) -> None:
    assert run(MOMENTS[moment], signal.SIGTERM) == (130, LINE)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_may_come_twice(number: signal.Signals) -> None:
    assert run(MOMENTS["at work"], number, times=2) == (130, LINE)


def test_ctrl_c_ends_a_command_with_130() -> None:
    assert run(MOMENTS["at work"], signal.SIGINT) == (130, LINE)


def test_a_signal_while_the_process_ends_does_not_change_that_it_ends() -> None:
    """The command is done, and its exit handlers run."""
    code, errors = run("atexit.register(lambda: (begin(), time.sleep(100)))", signal.SIGTERM)
    assert (code, errors) == (130, "")


def test_ctrl_c_stays_ignored_in_the_background() -> None:
    """A shell starts a background command with SIGINT ignored."""
    body = "stop(signal.SIGINT); begin(); time.sleep(100)"
    assert run(body, signal.SIGTERM, before="signal.signal(signal.SIGINT, signal.SIG_IGN)") == (130, LINE)


def test_the_handlers_of_a_program_that_runs_commands_are_kept() -> None:
    program = (
        f"{BEGIN}\nbefore = signal.getsignal(signal.SIGINT)\nassert run_job(lambda: 0) == 0\n"
        "assert signal.getsignal(signal.SIGINT) is before\nassert signal.set_wakeup_fd(-1) == -1\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
