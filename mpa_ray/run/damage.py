"""What a deep audit finds: damaged and missing files, each with its remedy and its repairs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from mpa_ray.run.dataset import ShardedDataset
from mpa_ray.run.run import Run

DAMAGED = "damaged"
"""The folder of the run to which a repair moves damaged files that are not in a dataset."""

SAME_COMMAND = "run mpa-ray audit RUN --repair, then the same command: it makes the file again"
RESTORE = "restore the file from a copy of the run"


@dataclass(frozen=True)
class Finding:
    """A damaged or missing file."""

    path: str
    problem: str
    remedy: str = SAME_COMMAND
    repairs: tuple[Callable[[], None], ...] = ()
    """What `audit --repair` does, so that the next command makes the file again; empty if a person must act."""

    def repair(self) -> bool:
        """Carry out the repairs. Returns False if there are none."""
        for repair in self.repairs:
            repair()
        return bool(self.repairs)

    def to_json(self, run_dir: str) -> dict[str, str]:
        """The finding as `mpa-ray audit` prints it."""
        return {"file": self.path, "problem": self.problem, "remedy": self.remedy.replace("RUN", run_dir)}


def set_aside(run: Run, *paths: str) -> Callable[[], None]:
    """A repair that moves files into the folder of damaged files."""
    return partial(_set_aside, run, paths)


def withdraw(dataset: ShardedDataset[Any], shard: str, last: int = 0) -> Callable[[], None]:
    """A repair that declares the rows of a shard unusable, up to the generation `last` or a later one."""
    return partial(dataset.markers.withdraw, shard, last)


def _set_aside(run: Run, paths: tuple[str, ...]) -> None:
    for path in paths:
        try:
            content = run.storage.read(path)
        except FileNotFoundError:
            # Another finding has moved it already.
            continue
        run.storage.write(f"{DAMAGED}/{path}", content)
        run.storage.delete(path)
