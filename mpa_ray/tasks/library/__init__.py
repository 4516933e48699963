"""The tasks that come with the package. Each task is a YAML file, like a user's own task."""

from __future__ import annotations

from pathlib import Path

from mpa_ray.errors import ConfigError, did_you_mean
from mpa_ray.tasks.task import Task, load_task

TASKS: dict[str, Task] = {
    task.name: task for task in (load_task(path) for path in sorted(Path(__file__).parent.glob("*.yaml")))
}


def find_task(name: str) -> Task:
    """Find a task of the library by its name, or load a task from a YAML file.

    Raises:
        ConfigError: there is no such task, or the file is wrong.
    """
    if name in TASKS:
        return TASKS[name]
    if name.endswith((".yaml", ".yml")):
        return load_task(name)
    problem = "is neither a task in the library nor a YAML file."
    remedy = f"{did_you_mean(name, TASKS)} Choose one of {', '.join(TASKS)}, or give a file.".lstrip()
    raise ConfigError("task", name, problem, remedy)
