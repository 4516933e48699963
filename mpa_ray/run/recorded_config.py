"""The configuration of a run's latest command, as run.json records it."""

from __future__ import annotations

from typing import Any

from mpa_ray.config import Arm, EvaluationRunConfig, measured_as, parse_config
from mpa_ray.errors import ConfigError
from mpa_ray.run.run import RUN_FILE, Run


def read_config(run: Run) -> EvaluationRunConfig:
    """Read the configuration. It is a `RunConfig` if the run aligns students.

    Raises:
        ConfigError: the directory holds no run, or a run with settings that this version does not accept.
    """
    config = _recorded_config(run)
    students = config.get("students", [])
    later = {f"{s['name']}.round{number}" for s in students for number in range(2, s.get("rounds", 1) + 1)}
    # Leave out students of later rounds, which are derived from the students of the first round.
    first = {"students": [student for student in students if student["name"] not in later]} if students else {}
    return parse_config({**config, **first})


def student_names(run: Run) -> list[str]:
    """The names of the students. Raises ConfigError if the directory holds no run."""
    return [student["name"] for student in _recorded_config(run).get("students", [])]


def arms_by_student(run: Run) -> dict[str, list[Arm]]:
    """The arms of each student. Raises ConfigError if the directory holds no run."""
    students = _recorded_config(run).get("students", [])
    return {student["name"]: student.get("arms", ["parity"]) for student in students}


def models_by_benchmark(run: Run) -> dict[str, list[str]]:
    """The names of the models that may have answered each benchmark. Raises ConfigError as `student_names` does."""
    config = _recorded_config(run)
    settings = config.get("evaluate")
    if settings is None:
        return {}
    models = ["teacher"] if "teacher" in config else []
    for student in config.get("students", []):
        trained = map(measured_as, student.get("arms", ["parity"]))
        models += [f"{student['name']}.{when}" for when in ("before", *trained)]
    models += [model["name"] for model in settings["models"]]
    return {benchmark["name"] or benchmark["kind"]: models for benchmark in settings["benchmarks"]}


def _recorded_config(run: Run) -> dict[str, Any]:
    try:
        config: dict[str, Any] = run.read_json(RUN_FILE)["config"]
    except FileNotFoundError:
        raise ConfigError("run_dir", run.storage.root, "has no run.json.", "Give the directory of a run.") from None
    return config
