"""The tasks that ship with the package: a YAML file each, like one of a user's own."""

from __future__ import annotations

from pathlib import Path

from mpa_ray.tasks.task import Task, load_task

TASKS: dict[str, Task] = {
    task.name: task for task in (load_task(path) for path in sorted(Path(__file__).parent.glob("*.yaml")))
}
