"""The share of cores of each engine on a machine without GPUs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mpa_ray.engine.cores import threads_per_engine

CLAIM = (
    "import sys; from pathlib import Path; from mpa_ray.engine.cores import claim_cores;"
    "print(claim_cores(range(4), int(sys.argv[1]), timeout_s=0.3, folder=Path(sys.argv[2])), flush=True);"
    "sys.stdin.read()"
)


def claim(num_threads: int, folder: Path) -> tuple[subprocess.Popen[str], str]:
    process = subprocess.Popen(
        [sys.executable, "-c", CLAIM, str(num_threads), str(folder)],
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def test_engines_claim_different_cores_and_release_them_when_they_end(tmp_path: Path) -> None:
    engines = [claim(2, tmp_path), claim(1, tmp_path), claim(1, tmp_path)]
    try:
        assert [cores for _, cores in engines] == ["[0, 1]", "[2]", "[3]"]
        engines[0][0].kill()
        engines[0][0].wait()
        engines.append(claim(2, tmp_path))
        assert engines[-1][1] == "[0, 1]"
        # No core is free, so cores are shared.
        engines.append(claim(4, tmp_path))
        assert engines[-1][1] == "[0, 1, 2, 3]"
    finally:
        for process, _ in engines:
            process.kill()
            process.communicate()


@pytest.mark.parametrize(
    ("num_cores", "num_engines", "cpus_per_engine", "large", "small"),
    [
        (1, 1, 1.0, 1, 1),
        (2, 1, 1.0, 2, 1),
        (2, 2, 1.0, 1, 1),
        (2, 3, 0.5, 1, 1),
        (16, 4, 1.0, 4, 4),
        (16, 4, 16.0, 16, 15),
        (4, 1, 8.0, 4, 3),
    ],
)
def test_threads_are_an_equal_share_or_the_configured_cpus_and_a_small_model_leaves_a_core_free(
    num_cores: int, num_engines: int, cpus_per_engine: float, large: int, small: int
) -> None:
    assert threads_per_engine(num_cores, num_engines, cpus_per_engine, weight_bytes=10**9) == large
    assert threads_per_engine(num_cores, num_engines, cpus_per_engine, weight_bytes=None) == large
    assert threads_per_engine(num_cores, num_engines, cpus_per_engine, weight_bytes=8 * 10**6) == small
