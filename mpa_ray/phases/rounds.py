"""Later rounds of alignment. A student of round 2 begins with the model that round 1 exported."""

from __future__ import annotations

from mpa_ray.config import RunConfig, StudentConfig
from mpa_ray.run.run import Run


def with_rounds(config: RunConfig, run: Run) -> RunConfig:
    """Add a student for each later round whose previous round is finished."""
    students = {student.name: student for first in config.students for student in _rounds(first, run)}
    return config.model_copy(update={"students": list(students.values())})


def index_of(student: StudentConfig, configured: RunConfig) -> int:
    """The index of a student in the setting `students`. A later round has the same index as the first."""
    names = [[first.name_in(number) for number in range(1, first.rounds + 1)] for first in configured.students]
    return next(index for index, of_rounds in enumerate(names) if student.name in of_rounds)


def _rounds(first: StudentConfig, run: Run) -> list[StudentConfig]:
    students = [first]
    for number in range(2, first.rounds + 1):
        previous = first.name_in(number - 1)
        if not run.is_leveled(previous):
            break
        model = run.merged_model(previous)
        settings = {"name": first.name_in(number), "model": model, "arms": ("parity",), "rounds": 1}
        students.append(first.model_copy(update=settings))
    return students
