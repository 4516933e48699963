"""Size a run: images, tokens, hours, GPU-hours and cost of each phase, and whether its models fit their GPUs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from mpa_ray.config import ModelConfig, PlanConfig, RunConfig, StudentConfig
from mpa_ray.errors import ConfigError, did_you_mean
from mpa_ray.models.gpus import GPUS
from mpa_ray.run.phase_record import PhaseKey
from mpa_ray.run.run import Run
from mpa_ray.sizing.memory import MemoryCheck, check_engine, check_training
from mpa_ray.sizing.models import Models, first_of_same_model
from mpa_ray.sizing.phases import PhaseSizer
from mpa_ray.sizing.run_rates import RunRates, changed_settings
from mpa_ray.sizing.sequence import VisitText
from mpa_ray.sizing.sizing import Sizing
from mpa_ray.sizing.workload import workload_of
from mpa_ray.storage.open import open_storage
from mpa_ray.tasks.library import find_task

_SETTING = re.compile(r"(?<![\w.])(?:engine\.|level\.|gpus_per_replica\b)")
"""The beginning of a setting of a model in a remedy."""


def size_run(config: RunConfig) -> Sizing:
    """Estimate what a run takes. This function reads files of checkpoints and runs, and writes nothing.

    Raises:
        ConfigError: the number of images or the kind of GPU is not known, or `plan.from_run` holds no run.
    """
    plan, notes = config.plan or PlanConfig(), list[str]()
    if plan.gpu is not None and plan.gpu not in GPUS and plan.gpu_memory_gib is None:
        remedy = f"{did_you_mean(plan.gpu, GPUS)} Choose one of {', '.join(GPUS)}, or set plan.gpu_memory_gib."
        raise ConfigError("plan.gpu", plan.gpu, "is not a known kind of GPU.", remedy.lstrip())
    measured = RunRates()
    if plan.from_run is not None:
        measured = _rates_of(plan.from_run, config)
        notes += changed_settings(config, measured.config)
    if any(student.rounds > 1 for student in config.students):
        notes.append("rounds: only the first round of each student is included")
    workload = workload_of(config, plan, Run(open_storage(config.run_dir, config.object_store)), notes)
    models = Models(plan, config.object_store, notes, _settings_of_models(config), _visit_text(config))
    phases = PhaseSizer(config, plan, workload, measured, models, notes).phases()
    checks = list(check_memory(config, measured, models))
    return Sizing(phases, checks, notes, plan.gpu_hour_price, plan.from_run)


def _visit_text(config: RunConfig) -> VisitText | None:
    """The longest text in the run's passes; None if its task cannot be read. Other commands report this error."""
    try:
        return VisitText.of(config, find_task(config.task))
    except ConfigError:
        return None


def _rates_of(run_dir: str, config: RunConfig) -> RunRates:
    """Read the rates of `plan.from_run`, and name this setting in errors about the directory."""
    try:
        return RunRates.of_run(Run(open_storage(run_dir, config.object_store)))
    except ConfigError as error:
        raise (error.with_field("plan.from_run") if error.field == "run_dir" else error) from error


def _settings_of_models(config: RunConfig) -> dict[str, str]:
    """For each checkpoint, the first setting that names it."""
    models = [("teacher", config.teacher.model)]
    models += [(f"students.{index}", student.model) for index, student in enumerate(config.students)]
    further = config.evaluate.models if config.evaluate is not None else ()
    models += [(f"evaluate.models.{index}", model.model) for index, model in enumerate(further)]
    return {model: f"{branch}.model" for branch, model in reversed(models)}


def check_memory(config: RunConfig, measured: RunRates, models: Models) -> Iterator[MemoryCheck]:
    """Check whether every model of a run fits the memory of its GPUs, for serving and for training."""
    yield _in_branch(_check_engine("teacher", config.teacher, models), "teacher")
    first = first_of_same_model(config.students)
    for index, student in enumerate(config.students):
        branch = f"students.{index}"
        if student in first:
            yield _in_branch(_check_engine(f"student {student.name}", student, models), branch)
        check = _check_training(student, models)
        memory_gib = measured.training_memory_gib(student.name)
        if check.needed_gib and memory_gib is not None:
            check = replace(check, detail=f"{check.detail}; {memory_gib:.1f} GiB were measured")
        yield _in_branch(check, branch)
    for index, model in enumerate(config.evaluate.models if config.evaluate is not None else ()):
        yield _in_branch(_check_engine(f"model {model.name}", model, models), f"evaluate.models.{index}")


def _in_branch(check: MemoryCheck, branch: str) -> MemoryCheck:
    """The check with remedies that name settings as the configuration does, such as `students.0.engine.dtype`."""
    remedies = (_SETTING.sub(rf"{branch}.\g<0>", remedy) for remedy in check.remedies)
    return replace(check, remedies=tuple(remedies))


def _check_engine(name: str, model: ModelConfig, models: Models) -> MemoryCheck:
    gpu, memory_gib, sizes = models.gpu_name(model), models.gpu_memory_gib(model), models.architecture(model)
    if not model.gpus_per_replica:
        return MemoryCheck(name, "not checked", detail="it runs on CPUs")
    if memory_gib is None or sizes is None:
        return MemoryCheck(name, "not checked", gpu, detail=_missing(gpu, has_sizes=sizes is not None))
    if models.visit_text is not None:
        model = models.visit_text.with_limit(model, sizes)
    return check_engine(name, model, sizes, gpu, memory_gib, models.plan.image_tokens)


def _check_training(student: StudentConfig, models: Models) -> MemoryCheck:
    name = PhaseKey("level", student.name).label
    gpu, memory_gib = models.gpu_name(student), models.gpu_memory_gib(student)
    sizes, image_tokens = models.architecture(student), models.image_tokens(student)
    if not student.level.gpus_per_worker:
        return MemoryCheck(name, "not checked", detail="it trains on CPUs")
    if memory_gib is None or sizes is None or image_tokens is None:
        return MemoryCheck(name, "not checked", gpu, detail=_missing(gpu, has_sizes=sizes is not None))
    return check_training(name, student.level, sizes, gpu, memory_gib, image_tokens)


def _missing(gpu: str, *, has_sizes: bool) -> str:
    """Say what is not known but needed to check the memory of a model."""
    if not has_sizes:
        return "the sizes of the checkpoint are not known"
    problem = f"{gpu} is not a known kind of GPU" if gpu else "no kind of GPU is set"
    if similar := did_you_mean(gpu, GPUS):
        return f"{problem}. {similar}"
    return f"{problem}: set accelerator_type or plan.gpu ({', '.join(GPUS)}), or plan.gpu_memory_gib"
