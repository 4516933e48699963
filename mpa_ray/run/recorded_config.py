"""The configuration of a run's latest command, as run.json records it."""

from __future__ import annotations

from typing import Any

from mpa_ray.config import measured_as
from mpa_ray.errors import ConfigError
from mpa_ray.run.run import RUN_FILE, Run


def student_names(run: Run) -> list[str]:
    """The names of the students. Raises ConfigError if the directory holds no run."""
    return [student["name"] for student in _recorded_config(run).get("students", [])]


def models_by_benchmark(run: Run) -> dict[str, list[str]]:
    """The names of the models that may have answered each benchmark. Raises ConfigError as `student_names` does."""
    config = _recorded_config(run)
    settings = config.get("evaluate")
    if settings is None:
        return {}
    models = ["teacher"]
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
