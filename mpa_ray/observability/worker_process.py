"""Describe a process that does a part of a run's work: where it runs, and where its output goes."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class WorkerProcess:
    """A process of a run. If it dies, its log is copied into the run. Its child processes write to the same log."""

    role: str
    """What the process does, such as `engine of teacher` or `training worker 1`."""
    pid: int
    host: str
    node_id: str
    """Ray's id of the node, or an empty string outside of Ray."""
    logs: tuple[str, ...]
    """The files on the process's node to which its standard output and standard error go."""
    num_oom_kills: int | None
    """How many processes the kernel had killed for lack of memory before this process started; None if unknown."""
    worker_id: str = ""
    """Ray's id of the process, or an empty string outside of Ray."""

    @classmethod
    def current(cls, role: str, node_id: str = "", worker_id: str = "") -> WorkerProcess:
        """Describe the calling process."""
        return cls(role, os.getpid(), socket.gethostname(), node_id, output_files(), num_oom_kills(), worker_id)

    @property
    def name(self) -> str:
        """The name of the process in messages."""
        return f"the {self.role} (process {self.pid} on {self.host})"


def output_files() -> tuple[str, ...]:
    """Return the files to which standard output and standard error of this process go, without terminals and pipes."""
    targets = []
    for stream in (1, 2):
        try:
            target = os.readlink(f"/proc/self/fd/{stream}")
        except OSError:
            continue
        if Path(target).is_file():
            targets.append(target)
    return tuple(dict.fromkeys(targets))


def num_oom_kills() -> int | None:
    """Return how many processes the kernel has killed for lack of memory since the machine started; None if unknown."""
    try:
        counters = dict(line.split() for line in Path("/proc/vmstat").read_text().splitlines())
        return int(counters["oom_kill"])
    except (OSError, KeyError, ValueError):
        return None


def read_tail(path: str, max_bytes: int) -> str:
    """Return the last `max_bytes` of a file as text; empty if the file cannot be read."""
    try:
        with Path(path).open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - max_bytes))
            return file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""
