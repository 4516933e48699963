"""The needs of models and of training are compared with the machine before a run directory is made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mpa_ray.api.phases import Phase, align, run_phase
from mpa_ray.config import EvaluateConfig, RunConfig
from mpa_ray.errors import ConfigError
from mpa_ray.pipeline import machine
from tests.conftest import scripted_tree


@pytest.fixture(autouse=True)
def two_cores_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(machine, "num_cores", lambda: 2)
    monkeypatch.setattr(machine, "local_gpus", lambda: (0, None))


def config_with(images: Path, run_dir: Path, setting: str, value: Any) -> RunConfig:
    tree: Any = scripted_tree(images, run_dir)
    tree["students"][0]["model"] = "bundled:demo/models/student"
    *parents, last = setting.split(".")
    node = tree
    for parent in parents:
        node = node[int(parent)] if parent.isdecimal() else node.setdefault(parent, {})
    node[last] = value
    return RunConfig.model_validate(tree)


@pytest.mark.parametrize(
    ("setting", "value", "problem"),
    [
        ("teacher.gpus_per_replica", 1, "needs 1 GPU; this machine has none."),
        ("teacher.cpus_per_replica", 3, "needs 3 CPUs; this machine has 2."),
        ("students.0.gpus_per_replica", 0.5, "needs 0.5 GPUs; this machine has none."),
        ("students.0.level.gpus_per_worker", 1, "needs 1 GPU; this machine has none."),
        ("students.0.level.cpus_per_worker", 16, "needs 16 CPUs; this machine has 2."),
        ("students.0.level.num_workers", 8, "needs 8 CPUs for 8 workers; this machine has 2."),
    ],
)
def test_what_the_machine_lacks_is_refused_before_a_run_exists(
    images: Path, tmp_path: Path, setting: str, value: float, problem: str
) -> None:
    config = config_with(images, tmp_path / "run", setting, value)
    with pytest.raises(ConfigError) as refused:
        align(config)
    field = setting.replace("num_workers", "cpus_per_worker")
    assert refused.value.field == field
    assert str(refused.value).count(problem) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("phase", "setting"),
    [
        ("annotate", "teacher.gpus_per_replica"),
        ("evaluate", "teacher.gpus_per_replica"),
        ("identify", "students.0.gpus_per_replica"),
        ("level", "students.0.level.gpus_per_worker"),
        ("level", "students.0.gpus_per_replica"),
    ],
)
def test_a_phase_checks_what_it_needs(images: Path, tmp_path: Path, phase: Phase, setting: str) -> None:
    config = config_with(images, tmp_path / "run", setting, 1)
    if phase == "evaluate":
        evaluate = EvaluateConfig.model_validate({"benchmarks": [{"path": "q.jsonl", "name": "held"}]})
        config = config.model_copy(update={"evaluate": evaluate})
    with pytest.raises(ConfigError, match=f"^{setting} = 1: needs 1 GPU"):
        run_phase(config, phase)
    assert not (tmp_path / "run").exists()


def test_a_phase_without_models_needs_no_gpu(images: Path, tmp_path: Path) -> None:
    run_phase(config_with(images, tmp_path / "run", "teacher.gpus_per_replica", 1), "index")
    assert (tmp_path / "run/corpus").exists()


def test_a_cluster_is_not_compared_with_this_machine(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mpa_ray.phases.resource_needs import check_resources_of

    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    check_resources_of(config_with(images, tmp_path / "run", "teacher.gpus_per_replica", 8), "align")


def test_another_kind_of_gpu_is_refused(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "local_gpus", lambda: (1, "H200"))
    config = config_with(images, tmp_path / "run", "teacher.gpus_per_replica", 1)
    config = config.model_copy(update={"teacher": config.teacher.model_copy(update={"accelerator_type": "A100"})})
    with pytest.raises(ConfigError, match=r"^teacher.accelerator_type = 'A100': is not the kind .* \(H200\)"):
        align(config)


def test_local_gpus_are_those_that_ray_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    from ray._private.accelerators import nvidia_gpu

    manager = nvidia_gpu.NvidiaGPUAcceleratorManager
    monkeypatch.setattr(manager, "get_current_node_num_accelerators", staticmethod(lambda: 4))
    monkeypatch.setattr(manager, "get_current_node_accelerator_type", staticmethod(lambda: "H100"))
    monkeypatch.setattr("ray._private.accelerators.get_accelerator_manager_for_resource", lambda _: manager)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert machine.local_gpus() == (4, "H100")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,3")
    assert machine.local_gpus() == (2, "H100")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert machine.local_gpus() == (0, None)
