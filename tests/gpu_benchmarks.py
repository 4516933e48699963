"""Dry runs of the GPU measurements: the same code at its smallest size, on CPUs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class DryRun:
    """What a dry run left behind."""

    exit_code: int
    log: str
    conditions: Mapping[str, Any]
    rows: Mapping[str, Mapping[str, Any]]
    summary: Mapping[str, Any]


def dry_run(name: str, folder: Path, *arguments: str, without: Sequence[str] = ()) -> DryRun:
    """Run `python -m benchmarks.gpu.NAME --dry-run` to its end.

    Args:
        name: The script.
        folder: Gets its results.
        arguments: More of the command line.
        without: Packages that cannot be imported in the run, nor in any process that it starts.
    """
    absent = folder / "absent"
    for package in without:
        (absent / package).mkdir(parents=True)
        (absent / package / "__init__.py").write_text(f"raise ImportError('{package} is not installed here')\n")
    out = folder / f"{name}.json"
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.gpu.{name}", "--dry-run", "--out", str(out), *arguments],
        cwd=ROOT,
        # With one thread each, processes that share few cores do not wait for one another at barriers.
        env={**os.environ, "PYTHONPATH": str(absent), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert out.exists(), done.stdout
    return DryRun(done.returncode, done.stdout, **json.loads(out.read_text()))


def assert_complete(run: DryRun, rows: Sequence[str]) -> None:
    """The run measured these rows, none of them failed, and its conditions say what it ran on."""
    assert run.exit_code == 0, run.log
    assert list(run.rows) == list(rows), run.log
    assert not [row for row in run.rows.values() if "failed" in row], run.log
    assert run.conditions["sizes"]["dry_run"] is True
    assert run.conditions["command"].startswith("python -m benchmarks.gpu.")
    assert run.conditions["versions"]["torch"]
    assert {"gpu", "driver", "python", "num_cores"} <= run.conditions.keys()
