"""A driver that any signal ends: its exit code, and the processes that it leaves behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import scripted_tree

ROOT = Path(__file__).parents[2]
_MOST_S = 20.0


def processes_of(mark: str) -> list[str]:
    """The processes whose environment has the mark: a driver's descendants, in whatever session or group they are."""
    commands = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (folder / "environ").read_bytes():
                commands.append(f"{folder.name} {(folder / 'cmdline').read_bytes()[:80]!r}")
        except OSError:
            continue
    return commands


def ends(tree: dict[str, Any], folder: Path, number: signal.Signals, when: Callable[[], bool]) -> tuple[int, str]:
    """Send a signal to an `annotate`, and check that no process is left; returns its exit code and its errors."""
    mark, config = uuid.uuid4().hex, folder / "config.yaml"
    config.write_text(yaml.safe_dump(tree))
    command = [sys.executable, "jobs/annotate.py", "--config", str(config)]
    environment = {**os.environ, "MARK_OF_TEST": mark}
    with (
        (folder / "errors").open("w") as errors,
        subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=errors) as driver,
    ):
        while not when():
            assert driver.poll() is None, (folder / "errors").read_text()
            time.sleep(0.05)
        assert len(processes_of(mark)) > 1
        driver.send_signal(number)
        code = driver.wait(60)
    deadline = time.monotonic() + _MOST_S
    while processes_of(mark) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert processes_of(mark) == []
    return code, (folder / "errors").read_text()


@pytest.fixture
def tree(images: Path, tmp_path: Path) -> dict[str, Any]:
    tree = scripted_tree(images, tmp_path / "run", latency_s=0.5)
    tree["teacher"]["max_images_in_flight"] = 2
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(tree))
    subprocess.run([sys.executable, "jobs/index.py", "--config", str(config)], cwd=ROOT, check=True)
    return tree


@pytest.mark.long
@pytest.mark.parametrize("name", ["SIGKILL", "SIGHUP", "SIGQUIT", "SIGINT", "SIGTERM"])
def test_no_process_is_left_behind(name: str, tree: dict[str, Any], tmp_path: Path) -> None:
    commits, number = tmp_path / "run/annotations/commits", signal.Signals[name]
    code, errors = ends(tree, tmp_path, number, lambda: any(commits.glob("*.json")))
    if name in ("SIGINT", "SIGTERM"):
        assert (code, errors) == (130, "Interrupted: run the same command again to continue.\n")
    else:
        assert code == -number


@pytest.mark.long
def test_sigterm_while_ray_starts(tree: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray has started its first process, and the driver is not connected yet."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="r") as short:
        monkeypatch.setenv("RAY_TMPDIR", short)
        code, errors = ends(tree, Path(short), signal.SIGTERM, lambda: any(Path(short).glob("ray/*/logs/gcs_server.*")))
    assert (code, errors) == (130, "Interrupted: run the same command again to continue.\n")
