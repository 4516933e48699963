"""A whole run on a file system without hard links, with a kill of the driver."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import scripted_tree
from tests.no_hard_links import compile_library, environment

ROOT = Path(__file__).parents[2]


@pytest.mark.long
def test_a_killed_run_without_hard_links_is_continued_and_whole(images: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    tree: dict[str, Any] = scripted_tree(images, run, latency_s=0.5)
    tree["teacher"]["max_images_in_flight"] = 2
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(tree))
    env = environment(compile_library(tmp_path), run, errno.EPERM)
    subprocess.run([sys.executable, "jobs/index.py", "--config", str(config)], cwd=ROOT, env=env, check=True)
    command = [sys.executable, "jobs/annotate.py", "--config", str(config)]
    with subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as driver:
        deadline = time.monotonic() + 120
        while not any((run / "annotations/commits").glob("*.json")):
            assert driver.poll() is None, "the command ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.kill(driver.pid, signal.SIGKILL)
    assert len(list((run / "annotations/commits").glob("*.json"))) < 8
    for job in ("annotate", "identify"):
        command = [sys.executable, f"jobs/{job}.py", "--config", str(config)]
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=200)
        assert done.returncode == 0, done.stderr
        assert f"{run} has no hard links: results are committed by exclusive renames instead" in done.stdout
    audit = subprocess.run(
        [sys.executable, "jobs/audit.py", str(run)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert audit.returncode == 0, audit.stdout
    assert json.loads(audit.stdout)["annotated"] == 60
