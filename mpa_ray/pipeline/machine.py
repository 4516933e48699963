"""The CPUs and GPUs of this machine, as Ray counts them if it is started on this machine."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from mpa_ray.config import LevelConfig, ModelConfig
from mpa_ray.errors import ConfigError

AUXILIARY_CPUS = 0.25
"""The CPUs that Ray reserves for a task that reads or writes files. They are few, because such a task mostly waits."""
_NUM_AUXILIARY_TASKS = 3
"""The number of small tasks that must fit next to an engine or a training run. They name shards, fetch images and
commit rows."""
_CPU_REMEDY = "Lower it, or set RAY_ADDRESS to a cluster with such a node."
_NODE_REMEDY = "Lower it, or add a larger node."
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Need:
    """The resources that one engine needs, or that each training worker needs."""

    cpu_field: str
    """The setting with the number of CPUs, as it is named in the user's configuration."""
    num_cpus: float
    gpu_field: str
    """The setting with the number of GPUs."""
    num_gpus: float
    accelerator_field: str
    """The setting with the kind of GPU."""
    accelerator_type: str | None = None
    num_workers: int = 1
    """The number of processes that each need these resources at the same time."""

    @classmethod
    def of_engine(cls, model: ModelConfig, branch: str) -> Need:
        """What one engine of a model needs. `branch` is the model's branch of the configuration, such as `teacher`."""
        return cls(
            f"{branch}.cpus_per_replica",
            model.cpus_per_replica,
            f"{branch}.gpus_per_replica",
            model.gpus_per_replica,
            f"{branch}.accelerator_type",
            model.accelerator_type,
        )

    @classmethod
    def of_training(cls, level: LevelConfig, branch: str) -> Need:
        """What a student's training needs. `branch` is the branch of its settings, such as `students.0.level`."""
        return cls(
            f"{branch}.cpus_per_worker",
            level.cpus_per_worker,
            f"{branch}.gpus_per_worker",
            level.gpus_per_worker,
            f"{branch}.accelerator_type",
            level.accelerator_type,
            num_workers=level.num_workers,
        )


def num_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0))


def num_local_cpus() -> int:
    """The number of CPUs that Ray is started with on this machine.

    One engine must fit next to the small tasks around it, even on a machine with one core.
    """
    return max(2, num_cores()) + 1


def local_gpus() -> tuple[int, str | None]:
    """The number and the kind of the GPUs that Ray finds on this machine."""
    # Imported here, because importing Ray takes a second, and runs without GPUs do not call this function.
    from ray._private.accelerators import get_accelerator_manager_for_resource

    manager = get_accelerator_manager_for_resource("GPU")
    num_gpus = manager.get_current_node_num_accelerators()
    visible = manager.get_current_process_visible_accelerator_ids()
    if visible is not None:
        num_gpus = min(num_gpus, len(visible))
    return num_gpus, manager.get_current_node_accelerator_type() if num_gpus else None


def check_machine(needs: Iterable[Need]) -> None:
    """Check that this machine has enough CPUs and GPUs for each need.

    Raises:
        ConfigError: the machine has too few CPUs or GPUs, or GPUs of another kind. The error names the first setting
            that this machine cannot satisfy.
    """
    for need in needs:
        _check_cpus(need)
        if need.num_gpus:
            _check_gpus(need, *local_gpus())


def unmet_by_nodes(need: Need, nodes: Sequence[Mapping[str, float]]) -> ConfigError | None:
    """Return the error that names the setting for which no node is large enough; None if a node is large enough for one
    engine or worker.

    Args:
        need: What each engine or worker needs.
        nodes: The resources of each node of a cluster, as Ray names them.
    """
    amounts = {"CPU": need.num_cpus, "GPU": need.num_gpus}
    if need.accelerator_type is not None and need.num_gpus:
        amounts[f"accelerator_type:{need.accelerator_type}"] = _ROUNDING
    if any(all(node.get(name, 0) >= amount for name, amount in amounts.items()) for node in nodes):
        return None
    most = {name: max((node.get(name, 0) for node in nodes), default=0) for name in amounts}
    if most["CPU"] < need.num_cpus:
        problem = f"needs {_amount(need.num_cpus, 'CPU')} on one node; the largest node has {most['CPU']:g}."
        return ConfigError(need.cpu_field, _plain(need.num_cpus), problem, _NODE_REMEDY)
    if most["GPU"] < need.num_gpus:
        has = f"{most['GPU']:g}" if most["GPU"] else "none"
        problem = f"needs {_amount(need.num_gpus, 'GPU')} on one node; the largest node has {has}."
        return ConfigError(need.gpu_field, _plain(need.num_gpus), problem, _NODE_REMEDY)
    if not all(most[name] for name in amounts if amounts[name]):
        problem = "is not the kind of any node's GPUs."
        return ConfigError(need.accelerator_field, need.accelerator_type, problem, "Remove it, or correct it.")
    kind = f" of kind {need.accelerator_type}" if need.accelerator_type else ""
    problem = (
        f"needs {_amount(need.num_cpus, 'CPU')} and {_amount(need.num_gpus, 'GPU')}{kind} on one node, and no node "
        "has all of these."
    )
    return ConfigError(need.gpu_field, _plain(need.num_gpus), problem, f"Lower it or {need.cpu_field}.")


def _check_cpus(need: Need) -> None:
    available = num_local_cpus() - _NUM_AUXILIARY_TASKS * AUXILIARY_CPUS
    if need.num_workers * need.num_cpus > available + _ROUNDING:
        problem = f"needs {_total(need, need.num_cpus)}; this machine has {num_cores()}."
        raise ConfigError(need.cpu_field, _plain(need.num_cpus), problem, _CPU_REMEDY)


def _check_gpus(need: Need, num_gpus: int, kind: str | None) -> None:
    if need.num_workers * need.num_gpus > num_gpus + _ROUNDING:
        problem = f"needs {_total(need, need.num_gpus, 'GPU')}; this machine has {num_gpus or 'none'}."
        remedy = f"Set it to {'at most the GPUs of this machine' if num_gpus else '0'}, or set RAY_ADDRESS to a "
        raise ConfigError(need.gpu_field, _plain(need.num_gpus), problem, f"{remedy}cluster with such a node.")
    if need.accelerator_type is not None and need.accelerator_type != kind:
        problem = f"is not the kind of this machine's GPUs ({kind})."
        remedy = "Remove it, or set RAY_ADDRESS to a cluster with such GPUs."
        raise ConfigError(need.accelerator_field, need.accelerator_type, problem, remedy)


def _total(need: Need, per_worker: float, unit: str = "CPU") -> str:
    words = _amount(need.num_workers * per_worker, unit)
    return f"{words} for {need.num_workers} workers" if need.num_workers > 1 else words


def _amount(number: float, unit: str) -> str:
    return f"{number:g} {unit}{'' if number == 1 else 's'}"


def _plain(number: float) -> float:
    return int(number) if number == int(number) else number
