"""The CPUs and GPUs that a command needs, and the settings that request them."""

from __future__ import annotations

from collections.abc import Iterator

from mpa_ray.config import EvaluationRunConfig, RunConfig, StudentConfig
from mpa_ray.pipeline.cluster_address import cluster_address
from mpa_ray.pipeline.machine import Need, check_machine


def check_resources_of(config: EvaluationRunConfig, phase: str) -> None:
    """If the command starts Ray on this machine, check that the machine has what a phase needs.

    Args:
        config: The run.
        phase: A phase, or `align` for all phases.

    Raises:
        ConfigError: the machine has fewer CPUs or GPUs than a setting needs; the error names the setting.
    """
    if cluster_address() is None:
        check_machine(_needs(config, phase))


def check_resources_of_student(student: StudentConfig, index: int) -> None:
    """Do the same as `check_resources_of`, for all phases of one student."""
    if cluster_address() is None:
        branch = f"students.{index}"
        check_machine([Need.of_engine(student, branch), Need.of_training(student.level, f"{branch}.level")])


def _needs(config: EvaluationRunConfig, phase: str) -> Iterator[Need]:
    evaluates = phase in ("align", "evaluate") and config.evaluate is not None
    if isinstance(config, RunConfig):
        measures_teacher = evaluates and config.evaluate is not None and config.evaluate.teacher
        if phase in ("align", "annotate") or measures_teacher:
            yield Need.of_engine(config.teacher, "teacher")
        for index, student in enumerate(config.students):
            # `level` checks the exported student in its engine.
            if phase in ("align", "identify", "level") or evaluates:
                yield Need.of_engine(student, f"students.{index}")
            if phase in ("align", "level"):
                yield Need.of_training(student.level, f"students.{index}.level")
    if evaluates and config.evaluate is not None:
        for index, model in enumerate(config.evaluate.models):
            yield Need.of_engine(model, f"evaluate.models.{index}")
