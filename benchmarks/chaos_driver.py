"""The driver of a trial, in a process that can be killed: `python -m benchmarks.chaos_driver FOLDER`.

It does what `jobs/index.py`, `jobs/annotate.py` and `jobs/identify.py` do, and records which process visits which
image.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

from mpa_ray.config import load_config
from mpa_ray.phases.annotate import annotate
from mpa_ray.phases.context import RunContext
from mpa_ray.phases.identify import identify
from mpa_ray.phases.index import index
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


def drive(folder: Path) -> None:
    """Run the phases of the configuration in a trial's folder, and record their visits there."""
    config = load_config(str(folder / CONFIG))
    annotating = partial(_recording, Annotate, _visits(folder, "annotate"))
    identifying = partial(_recording, Identify, _visits(folder, "identify"))
    with (
        patch("mpa_ray.phases.annotate.Annotate", annotating),
        patch("mpa_ray.phases.identify.Identify", identifying),
    ):
        for phase in (index, annotate, identify):
            phase(RunContext.open(config))


if __name__ == "__main__":
    # By the module's own name, so that Ray's workers find the stage.
    from benchmarks.chaos_driver import drive as run

    run(Path(sys.argv[1]))
