"""The choice of cores for an engine on CPUs, so that engines on one machine do not compete for the same cores."""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

_held: list[int] = []
"""Open files whose locks claim a core for this process; the system releases them when the process ends."""

_SMALL_BYTES = 32 * 2**20
"""A model with fewer bytes of weights computes so little at a time that its threads mostly wait for each other."""


def threads_per_engine(num_cores: int, num_engines: int, cpus_per_engine: float, weight_bytes: int | None) -> int:
    """The number of threads of each engine: an equal share of the cores, or `cpus_per_engine` if that is more.

    If an engine gets all cores, a small model (under 32 MiB) leaves one core free for rendering images and handling
    requests. A compute thread that shares its core with this work delays all other threads. For example, on two cores
    the bundled teacher (8.5 MB) annotates 112 images/s with one thread and 83 with two, while a model of 120 MB
    annotates 2.6 images/s with one thread and 4.3 with two.
    """
    share = min(num_cores, max(1, num_cores // num_engines, int(cpus_per_engine)))
    is_small = weight_bytes is not None and weight_bytes < _SMALL_BYTES
    return max(1, share - 1) if is_small and share == num_cores else share


def claim_cores(
    cores: Sequence[int], num_threads: int, timeout_s: float = 10.0, folder: Path | None = None
) -> list[int]:
    """Claim cores that no other engine of this machine has claimed, for the lifetime of this process.

    Engines of an earlier phase may still be ending, so this function waits up to `timeout_s` seconds for free cores. If
    there are then too few, engines share cores.
    """
    folder = folder or Path(tempfile.gettempdir(), f"mpa_ray-cores-{os.getuid()}")
    with suppress(OSError):
        # Without the folder, for example on a full disk, engines share cores.
        folder.mkdir(mode=0o700, exist_ok=True)
    claimed: list[int] = []
    deadline = time.monotonic() + timeout_s
    while True:
        for core in cores:
            if len(claimed) < num_threads and core not in claimed and _lock(folder / f"{core}"):
                claimed.append(core)
        if len(claimed) == num_threads or time.monotonic() > deadline:
            break
        time.sleep(0.1)
    others = [core for core in cores if core not in claimed]
    start = os.getpid() % max(1, len(others))
    return sorted(claimed + (others[start:] + others[:start])[: num_threads - len(claimed)])


def _lock(path: Path) -> bool:
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(file)
        return False
    _held.append(file)
    return True
