"""Child processes of an engine that die: real processes, killed and failing."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mpa_ray.engine.child_processes import ChildProcesses

POINTER = RuntimeError("EngineCore encountered an issue. See stack trace (above) for the root cause.")


def test_a_killed_process_is_named_with_its_signal() -> None:
    process = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(100,), name="EngineCore")
    process.start()
    children = ChildProcesses()
    children.add([process])
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    assert children.why_died(POINTER) == f"EngineCore (process {process.pid}) was killed by SIGKILL"


def test_the_kernel_is_named_where_it_has_killed_for_lack_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    children = ChildProcesses()
    monkeypatch.setattr("mpa_ray.engine.child_processes.num_oom_kills", lambda: 10**9)
    error = RuntimeError("Initialization failed. See root cause above. Failed core proc(s): {'EngineCore': -9}")
    cause = "EngineCore was killed by SIGKILL by the kernel, because the machine ran out of memory"
    assert children.why_died(error) == cause


FAILS = """
import sys
from mpa_ray.engine.child_processes import ChildProcesses
import subprocess
subprocess.run([sys.executable, "-c", "raise ValueError('the weights are torn')"])
error = RuntimeError("Engine core initialization failed. See root cause above. Failed core proc(s): {'EngineCore': 1}")
print("WHY", ChildProcesses().why_died(error), file=open(sys.argv[1], "w"))
"""


def test_an_error_that_a_child_has_written_is_quoted(tmp_path: Path) -> None:
    """The output goes to a file, like that of a Ray worker."""
    with (tmp_path / "log").open("w") as log:
        command = [sys.executable, "-c", FAILS, str(tmp_path / "why")]
        subprocess.run(command, stdout=log, stderr=log, check=True)
    assert (tmp_path / "why").read_text() == "WHY ValueError: the weights are torn\n"


def test_an_error_that_says_enough_stays() -> None:
    assert ChildProcesses().why_died(ValueError("no such dtype")) == "ValueError: no such dtype"


def test_a_process_that_starts_and_is_killed_in_a_watched_block_is_named() -> None:
    """For example, an engine core is killed while it loads the model. vLLM may then not know its exit code."""
    children = ChildProcesses()
    with children.watched():
        process = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(100,), name="EngineCore")
        process.start()
        assert process.pid is not None
        time.sleep(0.5)
        os.kill(process.pid, signal.SIGKILL)
        time.sleep(0.5)
    error = RuntimeError("Engine core initialization failed. See root cause above. Failed core proc(s): {}")
    assert children.why_died(error) == f"EngineCore (process {process.pid}) was killed by SIGKILL"
