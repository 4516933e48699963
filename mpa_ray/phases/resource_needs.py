"""The CPUs and GPUs that a command needs, and the settings that request them."""

from __future__ import annotations

from collections.abc import Iterator

from mpa_ray.config import EvaluationRunConfig, LevelConfig, ModelConfig, RunConfig, StudentConfig
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
        check_machine([*_of_model(student, f"students.{index}"), *_of_level(student.level, f"students.{index}.level")])


def _needs(config: EvaluationRunConfig, phase: str) -> Iterator[Need]:
    evaluates = phase in ("align", "evaluate") and config.evaluate is not None
    if isinstance(config, RunConfig):
        measures_teacher = evaluates and config.evaluate is not None and config.evaluate.teacher
        if phase in ("align", "annotate") or measures_teacher:
            yield from _of_model(config.teacher, "teacher")
        for index, student in enumerate(config.students):
            # `level` checks the exported student in its engine.
            if phase in ("align", "identify", "level") or evaluates:
                yield from _of_model(student, f"students.{index}")
            if phase in ("align", "level"):
                yield from _of_level(student.level, f"students.{index}.level")
    if evaluates and config.evaluate is not None:
        for index, model in enumerate(config.evaluate.models):
            yield from _of_model(model, f"evaluate.models.{index}")


def _of_model(model: ModelConfig, field: str) -> Iterator[Need]:
    yield Need(
        f"{field}.cpus_per_replica",
        model.cpus_per_replica,
        f"{field}.gpus_per_replica",
        model.gpus_per_replica,
        f"{field}.accelerator_type",
        model.accelerator_type,
    )


def _of_level(level: LevelConfig, field: str) -> Iterator[Need]:
    yield Need(
        f"{field}.cpus_per_worker",
        level.cpus_per_worker,
        f"{field}.gpus_per_worker",
        level.gpus_per_worker,
        f"{field}.accelerator_type",
        level.accelerator_type,
        num_workers=level.num_workers,
    )
