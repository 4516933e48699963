"""Which cores an engine on CPUs computes on, so that engines side by side do not fight for the same ones."""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

_held: list[int] = []
"""Open files whose locks say that this process computes on a core; the system frees them when it ends."""


_SMALL_BYTES = 32 * 2**20
"""Weights of a model that computes so little between the barriers of its threads that it mostly waits there."""


def threads_per_engine(num_cores: int, num_engines: int, cpus_per_engine: float, weight_bytes: int | None) -> int:
    """An equal share of the machine, or what was asked for where that is more; a small model leaves one core free.

    On the core that is left images are rendered and requests go in and out. A thread that has to share its core with
    that holds up all others: the bundled teacher (8.5 MB) does 112 images/s on one of two cores and 83 on both, while a
    model of 120 MB does 2.6 and 4.3.
    """
    share = min(num_cores, max(1, num_cores // num_engines, int(cpus_per_engine)))
    is_small = weight_bytes is not None and weight_bytes < _SMALL_BYTES
    return max(1, share - 1) if is_small and share == num_cores else share


def claim_cores(
    cores: Sequence[int], num_threads: int, patience_s: float = 10.0, folder: Path | None = None
) -> list[int]:
    """Take cores that no engine of this machine has taken, for as long as this process lives.

    Engines of an earlier phase may be ending still, so it waits a little; where too few get free, cores are shared.
    """
    folder = folder or Path(tempfile.gettempdir(), f"mpa_ray-cores-{os.getuid()}")
    with suppress(OSError):
        # Without locks, as where the disk is full, cores are shared.
        folder.mkdir(mode=0o700, exist_ok=True)
    ours: list[int] = []
    waiting_until = time.monotonic() + patience_s
    while True:
        for core in cores:
            if len(ours) < num_threads and core not in ours and _take(folder / f"{core}"):
                ours.append(core)
        if len(ours) == num_threads or time.monotonic() > waiting_until:
            break
        time.sleep(0.1)
    others = [core for core in cores if core not in ours]
    start = os.getpid() % max(1, len(others))
    return sorted(ours + (others[start:] + others[:start])[: num_threads - len(ours)])


def _take(lock: Path) -> bool:
    try:
        file = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(file)
        return False
    _held.append(file)
    return True
