"""The needs of models and of training are compared with the machine before a run directory is made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mpa_ray.api.phases import Phase, align, run_phase
from mpa_ray.config import EvaluateConfig, LevelConfig, ModelConfig, RunConfig
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


NODES = [{"CPU": 16.0}, {"CPU": 4.0, "GPU": 2.0, "accelerator_type:A10G": 1.0}]


@pytest.mark.parametrize(
    ("need", "message"),
    [
        ((16, 0, None), None),
        ((4, 2, None), None),
        ((4, 2, "A10G"), None),
        ((17, 0, None), "teacher.cpus_per_replica = 17: needs 17 CPUs on one node; the largest node has 16."),
        ((1, 4, None), "teacher.gpus_per_replica = 4: needs 4 GPUs on one node; the largest node has 2."),
        ((1, 1, "A100"), "teacher.accelerator_type = 'A100': is not the kind of any node's GPUs."),
        (
            (8, 1, None),
            "teacher.gpus_per_replica = 1: needs 8 CPUs and 1 GPU on one node, and no node has all of these.",
        ),
    ],
)
def test_the_setting_that_no_node_of_a_cluster_satisfies_is_named(
    need: tuple[float, float, str | None], message: str | None
) -> None:
    cpus, gpus, kind = need
    model = ModelConfig(model="m", cpus_per_replica=cpus, gpus_per_replica=gpus, accelerator_type=kind)
    error = machine.unmet_by_nodes(machine.Need.of_engine(model, "teacher"), NODES)
    assert str(error or None).startswith(str(message))


def test_a_cluster_without_gpus_has_none() -> None:
    model = ModelConfig(model="m", gpus_per_replica=1)
    error = machine.unmet_by_nodes(machine.Need.of_engine(model, "students.3"), [{"CPU": 16.0}])
    assert str(error) == (
        "students.3.gpus_per_replica = 1: needs 1 GPU on one node; the largest node has none. Lower it, or add a "
        "larger node."
    )


def test_a_cluster_that_may_grow_gets_a_warning(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In earlier versions, the warning began with `annotate:teacher: cpus_per_replica, gpus_per_replica`."""
    import ray

    from mpa_ray.pipeline.cluster import check_resources

    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": NODES[0]}])
    level = LevelConfig(gpus_per_worker=1)
    check_resources(machine.Need.of_training(level, "students.0.level"))
    assert capsys.readouterr().out.splitlines() == [
        "WARNING: students.0.level.gpus_per_worker = 1: needs 1 GPU on one node; the largest node has none. Lower it, "
        "or add a larger node. Until then, the command waits."
    ]
    monkeypatch.delenv("RAY_ADDRESS")
    with pytest.raises(ConfigError, match=r"^students\.0\.level\.gpus_per_worker = 1: needs 1 GPU on one node"):
        check_resources(machine.Need.of_training(level, "students.0.level"))
