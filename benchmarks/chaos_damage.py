"""Damaged files of a run: flipped bits and truncated files, which `mpa-ray audit --repair` withdraws."""

from __future__ import annotations

import random
import re
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

from pyarrow.fs import FileSelector, FileSystem

from benchmarks.chaos_faults import (
    IDENTIFYING,
    PHASES,
    Driver,
    Expectation,
    Fault,
    Injection,
    Reference,
    Scene,
    Start,
)
from benchmarks.chaos_recount import read_rows
from benchmarks.chaos_testbed import STUDENT

_MEASURED = re.compile("_s$|^attempts$|logprob|cached")
"""Columns that may differ between two runs."""
_NO_RESULTS = ("manifest.json", "README.md")
"""Files beside exported results: a list with times, and a card that names the run."""
_NUMBERED = re.compile(r"^\.?[0-9a-f]*[0-9][^/]*")


@dataclass(frozen=True)
class Damage(Fault):
    """Damages a file of a finished run, or kills the driver of an unfinished one and damages a file then."""

    expects = Expectation.PERSON_ACTS
    is_finished: bool
    phase: str
    num_committed: int
    seed: int
    """Decides which file is damaged, and where."""

    @property
    def start(self) -> Start:
        return Start.LEVELED if self.is_finished else Start.NOTHING

    @property
    def jobs(self) -> tuple[str, ...]:
        return (*IDENTIFYING, "level") if self.is_finished else IDENTIFYING

    @classmethod
    def plan(cls, draws: random.Random, block: int, reference: Reference) -> Fault:  # noqa: ARG003
        most = reference.num_shards * 3 // 4
        return cls(draws.random() < 2 / 3, draws.choice(PHASES), draws.randrange(most), draws.randrange(2**32))

    def prepare(self, scene: Scene) -> None:
        if self.is_finished:
            self._damage(scene)

    def inject(self, scene: Scene, driver: Driver) -> Injection | None:
        if not self.is_finished:
            if not scene.visits(self.phase) or len(scene.committed(self.phase)) < self.num_committed:
                return None
            driver.kill()
            driver.wait()
            self._damage(scene)
        moment = "of a finished run" if self.is_finished else f"in {self.phase} at {self.num_committed} shards"
        return Injection(self, f"{moment}: {', '.join(scene.damaged)}")

    def act(self, scene: Scene, line: str) -> str | None:
        """A person runs `audit --repair` if the line names a damaged file, or says that one may be damaged."""
        if "audit" not in line and not any(path in line for path in scene.damaged):
            return None
        return scene.repair()

    def _damage(self, scene: Scene) -> None:
        draws = random.Random(self.seed)
        paths = [key.removeprefix("run/") for key in scene.testbed.files_of(scene.name)]
        kind = draws.choice(sorted(set(map(kind_of, paths))))
        path = draws.choice([path for path in paths if kind_of(path) == kind])
        content = scene.run.storage.read(path)
        scene.run.storage.write(path, self.damaged(content, draws))
        scene.damaged[path] = content

    @abstractmethod
    def damaged(self, content: bytes, draws: random.Random) -> bytes:
        """The content after the damage."""


class BitFlip(Damage):
    """One bit of a file flips."""

    kind = "bit flip"

    def damaged(self, content: bytes, draws: random.Random) -> bytes:
        return flipped(content, draws.randrange(8 * len(content)))


class Truncation(Damage):
    """A file loses its end."""

    kind = "truncation"

    def damaged(self, content: bytes, draws: random.Random) -> bytes:
        return content[: draws.randrange(len(content))]


def results_of(files: FileSystem, folder: str) -> dict[str, Any]:
    """All results of a run, read without the code of the run: rows without measured times, D_PI, and students."""
    datasets = ("corpus", "annotations", f"verdicts/{STUDENT}", f"students/{STUDENT}/parity/epoch")
    results: dict[str, Any] = {}
    for dataset in datasets:
        rows, _ = read_rows(files, folder, dataset)
        results[dataset] = [{k: v for k, v in row.items() if not _MEASURED.search(k)} for row in rows]
    for exported in (f"parity/{STUDENT}", f"students/{STUDENT}/parity/adapter", f"students/{STUDENT}/parity/merged"):
        for info in files.get_file_info(FileSelector(f"{folder}/{exported}", allow_not_found=True)):
            if info.base_name not in _NO_RESULTS:
                with files.open_input_file(info.path) as file:
                    results[f"{exported}/{info.base_name}"] = file.read()
    return results


def flipped(content: bytes, bit: int) -> bytes:
    """The content with one bit flipped."""
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def kind_of(path: str) -> str:
    """The path without what differs between files of the same kind, so that each kind is drawn as often."""
    *folders, name = path.split("/")
    parts = ["checkpoint" if folder.startswith("checkpoint_") else folder for folder in folders]
    return "/".join([*parts, _NUMBERED.sub("N", name.partition("-")[0])])
