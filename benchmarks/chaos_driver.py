"""The driver of a trial, in a process that can be killed: `python -m benchmarks.chaos_driver CONFIG JOB ...`.

It does what `jobs/JOB.py` does for one job after the other, with the same messages and exit codes, and records which
process visits which image.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

from mpa_ray.cli.run_job import run_job
from mpa_ray.config import load_config
from mpa_ray.phases.annotate import annotate
from mpa_ray.phases.context import RunContext
from mpa_ray.phases.identify import identify
from mpa_ray.phases.index import index
from mpa_ray.phases.level import level
from mpa_ray.stages.annotate import Annotate
from mpa_ray.stages.identify import Identify
from mpa_ray.stages.image_work import ImageWork, Stage

CONFIG = "config.json"
"""The name of the configuration in a trial's folder."""


@dataclass(frozen=True)
class Visit:
    """An image that the model in some process began to work on."""

    pid: int
    image_id: str


def read_visits(folder: Path, phase: str) -> list[Visit]:
    """The visits of a phase so far, in the order in which they began."""
    path = _visits(folder, phase)
    lines = path.read_text().splitlines() if path.exists() else []
    return [Visit(int(pid), image_id) for pid, image_id in (line.split(" ", 1) for line in lines)]


def _visits(folder: Path, phase: str) -> Path:
    return folder / f"{phase}.visits"


@dataclass(frozen=True)
class RecordingStage:
    """A stage that first records the visit."""

    stage: Stage[Any, Any]
    visits: Path

    async def visit(self, work: ImageWork[Any]) -> list[Any]:
        with self.visits.open("a") as file:
            file.write(f"{os.getpid()} {work.image_id}\n")
        return await self.stage.visit(work)


def _recording(make_stage: Callable[..., Stage[Any, Any]], visits: Path, *args: Any, **kwargs: Any) -> RecordingStage:
    return RecordingStage(make_stage(*args, **kwargs), visits)


def drive(config_file: Path, jobs: Sequence[str]) -> None:
    """Run jobs with a configuration, and record their visits in its folder."""
    config = load_config(str(config_file))
    annotating = partial(_recording, Annotate, _visits(config_file.parent, "annotate"))
    identifying = partial(_recording, Identify, _visits(config_file.parent, "identify"))
    with (
        patch("mpa_ray.phases.annotate.Annotate", annotating),
        patch("mpa_ray.phases.identify.Identify", identifying),
    ):
        for job in jobs:
            PHASES[job](RunContext.open(config))


PHASES: dict[str, Callable[[RunContext[Any]], object]] = {
    "index": index,
    "annotate": annotate,
    "identify": identify,
    "level": level,
}


if __name__ == "__main__":
    # By the module's own name, so that Ray's workers find the stage.
    from benchmarks.chaos_driver import drive as run

    sys.exit(run_job(lambda: run(Path(sys.argv[1]), sys.argv[2:])))
