"""Later rounds: a student of round 2 is a student whose model is the export of round 1."""

from __future__ import annotations

from mpa_ray.config import RunConfig, StudentConfig
from mpa_ray.run.run import Run


def with_rounds(config: RunConfig, run: Run) -> RunConfig:
    """The configuration with a student for every later round whose round before is done."""
    students = {student.name: student for first in config.students for student in _rounds(first, run)}
    return config.model_copy(update={"students": list(students.values())})


def _rounds(first: StudentConfig, run: Run) -> list[StudentConfig]:
    students = [first]
    for number in range(2, first.rounds + 1):
        before = first.name_in(number - 1)
        if not run.is_leveled(before):
            break
        settings = {"name": first.name_in(number), "model": run.merged_model(before), "arms": ("parity",), "rounds": 1}
        students.append(first.model_copy(update=settings))
    return students
