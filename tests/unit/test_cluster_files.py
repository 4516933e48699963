"""Check the cluster files with Ray's own code and KubeRay's schema, and against each other and pyproject.toml."""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import jsonschema
import pytest
import yaml
from ray._private.ray_constants import get_runtime_env_default_excludes
from ray._private.runtime_env.packaging import _dir_travel, _get_excludes
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.runtime_env import RuntimeEnv

from mpa_ray.pipeline.cluster import MALLOC

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LAUNCHERS = ["aws.yaml", "gcp.yaml"]
MANIFESTS = ["kuberay/raycluster.yaml", "kuberay/rayjob.yaml"]
DOCKERFILES = ["Dockerfile.gpu", "Dockerfile.cpu"]
KUBERAY = "1.7.0"
GROUPS = {
    "head": (0, 0, None),
    "cpu": (4, 0, None),
    "teacher": (4, 1, "H100"),
    "student": (8, 1, "L4"),
}
"""The node groups, equal on all clouds: maximum number of nodes, GPUs per node, and kind of GPU."""


def load(name: str) -> Any:
    return yaml.safe_load((CLUSTER / name).read_text())


def texts_by_name() -> Iterator[tuple[str, str]]:
    """The names and texts of all cluster files and ignore files."""
    for path in sorted([*CLUSTER.rglob("*"), ROOT / ".rayignore", ROOT / ".dockerignore"]):
        if path.is_file() and path.suffix != ".pyc":
            yield str(path.relative_to(ROOT)), path.read_text()


def groups(node_types: dict[str, Any]) -> dict[str, tuple[int, int, str | None]]:
    """The node groups in the form of `GROUPS`."""
    by_name = {}
    for name, node_type in node_types.items():
        resources = node_type["resources"]
        kinds = [key.removeprefix("accelerator_type:") for key in resources if key.startswith("accelerator_type:")]
        max_nodes = 0 if name in ("head", "headgroup") else node_type["max_workers"]
        by_name[name.removesuffix("group")] = (max_nodes, int(resources.get("GPU", 0)), kinds[0] if kinds else None)
    return by_name


def cluster_spec(name: str) -> dict[str, Any]:
    manifest = load(name)
    spec: dict[str, Any] = manifest["spec"]
    return spec.get("rayClusterSpec", spec)


def pods(name: str) -> list[dict[str, Any]]:
    spec = cluster_spec(name)
    return [group["template"]["spec"] for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])]


# --- Ray's launcher


@pytest.mark.parametrize("name", LAUNCHERS)
def test_launcher_files_pass_rays_validation(name: str) -> None:
    config = prepare_config(load(name))
    validate_config(config)
    assert sum(kind["max_workers"] for kind in config["available_node_types"].values()) <= config["max_workers"]


def test_gcp_has_the_expected_groups() -> None:
    assert groups(load("gcp.yaml")["available_node_types"]) == GROUPS


@pytest.mark.parametrize("name", MANIFESTS)
def test_kubernetes_manifests_have_the_expected_groups_for_rays_autoscaler(name: str) -> None:
    resource = {"metadata": {"name": "x", "namespace": "default"}, "spec": cluster_spec(name)}
    config = _derive_autoscaling_config_from_ray_cr(resource)
    validate_config(config)
    assert groups(config["available_node_types"]) == GROUPS


@pytest.mark.parametrize("name", [*LAUNCHERS, *MANIFESTS])
def test_head_has_no_cpus_and_only_workers_are_spot_nodes(name: str) -> None:
    if name in MANIFESTS:
        head, *workers = pods(name)
        assert cluster_spec(name)["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}
        assert "tolerations" not in head
        assert all("cloud.google.com/gke-spot" in str(pod["tolerations"]) for pod in workers)
        return
    config = load(name)
    head = config["available_node_types"].pop("head")
    assert head["resources"] == {"CPU": 0}
    assert not re.search("spot", str(head), re.IGNORECASE)
    assert all(re.search("spot", str(kind), re.IGNORECASE) for kind in config["available_node_types"].values())
    assert all(kind["min_workers"] == 0 for kind in config["available_node_types"].values())


def test_launcher_files_differ_only_in_cloud_settings() -> None:
    aws, gcp = (load(name) for name in LAUNCHERS)
    shared_keys = [
        "cluster_name",
        "max_workers",
        "idle_timeout_minutes",
        "file_mounts",
        "setup_commands",
        "head_start_ray_commands",
        "worker_start_ray_commands",
        "head_node_type",
    ]
    assert [aws[key] for key in shared_keys] == [gcp[key] for key in shared_keys]
    assert aws["docker"]["image"] == gcp["docker"]["image"]
    assert gcp["docker"]["run_options"][: len(aws["docker"]["run_options"])] == aws["docker"]["run_options"]


# --- Security


@pytest.mark.parametrize("name", LAUNCHERS)
def test_launched_clusters_require_a_token_and_open_no_port(name: str) -> None:
    config = load(name)
    assert "--env RAY_AUTH_MODE=token" in config["docker"]["run_options"]
    assert config["file_mounts"]["/home/ray/.ray/auth_token"] == "~/.ray/auth_token"
    (start,) = [command for command in config["head_start_ray_commands"] if "--head" in command]
    assert "--dashboard-host=127.0.0.1" in start
    assert config["auth"]["ssh_proxy_use_node_id"]
    if name == "gcp.yaml":
        interfaces = [kind["node_config"]["networkInterfaces"] for kind in config["available_node_types"].values()]
        assert all(set(interface) == {"subnetwork"} for interface in itertools.chain(*interfaces))
    else:
        assert config["provider"]["use_internal_ips"]


@pytest.mark.parametrize("name", MANIFESTS)
def test_pods_require_a_token_and_open_no_port(name: str) -> None:
    spec = cluster_spec(name)
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["headGroupSpec"]["serviceType"] == "ClusterIP"
    for pod in pods(name):
        assert not pod.keys() & {"hostNetwork", "hostPID"}
        assert pod["serviceAccountName"] == "mpa-ray"
        (container,) = pod["containers"]
        assert "ports" not in container
        assert all(set(variable) == {"name", "valueFrom"} for variable in container["env"])
        assert container["resources"]["requests"] == container["resources"]["limits"]


def test_no_file_contains_a_secret_or_a_public_address() -> None:
    forbidden = {
        "an address range of the whole internet": r"0\.0\.0\.0|::/0",
        "a public service": r"LoadBalancer|NodePort|kind: Ingress",
        "an AWS key": r"AKIA[0-9A-Z]{16}|aws_secret_access_key",
        "a token": r"hf_[A-Za-z0-9]{20,}|gh[pousr]_[A-Za-z0-9]{20,}|[0-9a-f]{64}(?!  ray\.io_)",
        "a private key": r"BEGIN [A-Z ]*PRIVATE KEY|gcp_credentials|aws_credentials",
    }
    for name, text in texts_by_name():
        for what, pattern in forbidden.items():
            assert not re.search(pattern, text), f"{name} contains {what}"


# --- Versions


@pytest.mark.parametrize("extra", [None, "cpu", "gpu"])
def test_requirements_equal_the_dependencies_in_pyproject(extra: str | None) -> None:
    lines = (CLUSTER / f"requirements{f'-{extra}' if extra else ''}.txt").read_text().splitlines()
    requirements = [line for line in lines if line and not line.startswith("#")]
    expected = ["-r requirements.txt", *PROJECT["optional-dependencies"][extra]] if extra else PROJECT["dependencies"]
    assert requirements == expected


def test_base_images_have_the_pinned_ray_and_the_same_python() -> None:
    (ray,) = [line.partition("==")[2] for line in PROJECT["dependencies"] if line.startswith("ray[")]
    tags = [tag for _, text in texts_by_name() for tag in re.findall(r"rayproject/ray:(\S+)", text)]
    assert len(tags) >= 4
    assert {tag.rpartition("-")[0] for tag in tags} == {f"{ray}-py311"}
    assert {tag.rpartition("-")[2] for tag in tags} == {"cu130", "cpu"}
    assert all(cluster_spec(name)["rayVersion"] == ray for name in MANIFESTS)


def test_own_images_are_tagged_with_the_version_of_the_package() -> None:
    tags = {tag for _, text in texts_by_name() for tag in re.findall(r"/mpa-ray:([\w.-]+)", text)}
    assert tags == {f"{PROJECT['version']}-gpu", f"{PROJECT['version']}-cpu"}


def test_all_files_name_the_same_version_of_kuberay() -> None:
    names = [*MANIFESTS, "README.md"]
    versions = {version for name in names for version in re.findall(r"\b1\.\d+\.\d+\b", (CLUSTER / name).read_text())}
    assert versions == {KUBERAY}
    assert f"kuberay/v{KUBERAY}/" in (ROOT / "Makefile").read_text()


# --- KubeRay's schema


def crd(kind: str) -> dict[str, Any]:
    """The schema of a kind in the pinned version of KubeRay, from the folder that `make check-cluster` fills."""
    folder = Path(os.environ.get("KUBERAY_CRDS") or Path.home() / f".cache/mpa_ray/kuberay-{KUBERAY}")
    name = f"ray.io_{kind.lower()}s.yaml"
    if not (folder / name).is_file():
        pytest.skip(f"no {name} in {folder}: run `make check-cluster`, which downloads it, or set KUBERAY_CRDS")
    content = (folder / name).read_bytes()
    sums = dict(reversed(line.split()) for line in (CLUSTER / "kuberay/crds.sha256").read_text().splitlines())
    assert hashlib.sha256(content).hexdigest() == sums[name], f"{folder / name} is not the file of KubeRay {KUBERAY}"
    definition = yaml.load(content, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    versions = definition["spec"]["versions"]
    (schema,) = [version["schema"]["openAPIV3Schema"] for version in versions if version["name"] == "v1"]
    return strict(schema)


def strict(schema: Any) -> Any:
    """The schema with unknown fields forbidden, because Kubernetes drops them silently."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    copy = {key: strict(value) for key, value in schema.items()}
    is_object = isinstance(schema.get("properties"), dict) and "type" in schema
    if is_object and not schema.get("x-kubernetes-preserve-unknown-fields"):
        copy.setdefault("additionalProperties", False)
    return copy


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifests_match_kuberays_schema_which_rejects_unknown_fields(name: str) -> None:
    manifest = load(name)
    schema = crd(manifest["kind"])
    jsonschema.validate(manifest, schema)
    spec = manifest["spec"].get("rayClusterSpec", manifest["spec"])
    spec["workerGroupSpecs"][0]["maxReplica"] = 4
    with pytest.raises(jsonschema.ValidationError, match="maxReplica"):
        jsonschema.validate(manifest, schema)


# --- References between files


def check_install() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_install", CLUSTER / "check_install.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", DOCKERFILES)
def test_dockerfiles_copy_files_that_exist_and_are_not_ignored(name: str) -> None:
    ignored = (ROOT / ".dockerignore").read_text()
    for instruction, arguments in check_install().instructions((CLUSTER / name).read_text()):
        if instruction == "COPY":
            for source in [word for word in arguments.split() if not word.startswith("--")][:-1]:
                assert (ROOT / source).exists(), source
                assert f"!{source}" in ignored or (source.startswith("cluster/requirements") and "!cluster/" in ignored)


def test_rayjob_starts_a_script_and_a_config_that_the_image_contains() -> None:
    entrypoint = load("kuberay/rayjob.yaml")["spec"]["entrypoint"].split()
    workdir = dict(check_install().instructions((CLUSTER / "Dockerfile.gpu").read_text()))["WORKDIR"]
    assert (ROOT / entrypoint[1].removeprefix(f"{workdir}/")).is_file()
    (mount,) = pods("kuberay/rayjob.yaml")[0]["containers"][0]["volumeMounts"]
    assert entrypoint[-1] == f"{mount['mountPath']}/run.yaml"


@pytest.mark.parametrize("name", LAUNCHERS)
def test_launcher_files_name_files_that_exist(name: str) -> None:
    config = load(name)
    assert (ROOT / config["file_mounts"]["/home/ray/cluster"]).is_dir()
    (install,) = [command for command in config["setup_commands"] if command.startswith("pip install")]
    assert (ROOT / install.rpartition("~/")[2]).is_file()


def test_documents_name_cluster_files_that_exist() -> None:
    for path in (CLUSTER / "README.md", ROOT / "README.md", ROOT / "docs/clusters.md"):
        for name in re.findall(r"\bcluster/[\w./-]+\w", path.read_text()):
            assert (ROOT / name).exists(), name


def test_yaml_files_parse_and_the_stack_has_no_anchors() -> None:
    for path in CLUSTER.rglob("*.yaml"):
        yaml.compose(path.read_text())
    # CloudFormation supports neither anchors nor aliases.
    assert not re.search(r"[&*]\w+$", (CLUSTER / "aws_stack.yaml").read_text(), re.MULTILINE)


@pytest.mark.parametrize("name", DOCKERFILES)
def test_dockerfiles_pass_hadolint(name: str) -> None:
    installed = Path(sys.executable).with_name("hadolint")
    hadolint = str(installed) if installed.exists() else shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("no hadolint: `make check-cluster` installs it")
    result = subprocess.run([hadolint, CLUSTER / name], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


# --- Job uploads


def test_runtime_env_is_valid_and_sets_no_variable_that_the_driver_sets() -> None:
    environment = RuntimeEnv(**load("runtime_env.yaml"))
    # Ray refuses a variable that both the job and its driver set.
    assert not environment.env_vars().keys() & {"PYTHONPATH", *MALLOC}


def uploaded(root: Path) -> set[str]:
    """The files of a working directory that Ray uploads."""
    names: set[str] = set()
    excludes = [_get_excludes(root, get_runtime_env_default_excludes())]
    _dir_travel(root, excludes, lambda path: names.add(str(path.relative_to(root))), include_gitignore=True)
    return {name for name in names if (root / name).is_file()}


def test_job_uploads_the_package_with_its_models() -> None:
    names = uploaded(ROOT)
    needed = {
        str(path.relative_to(ROOT))
        for folder in ("mpa_ray", "jobs")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert needed <= names
    assert any(name.endswith("models/teacher/model.safetensors") for name in names)
    assert sum((ROOT / name).stat().st_size for name in names) < 64 * 2**20


def test_job_does_not_upload_runs_environments_and_caches(tmp_path: Path) -> None:
    for name in (".rayignore", ".gitignore"):
        shutil.copy(ROOT / name, tmp_path)
    expected = {"my.yaml", "jobs/align.py", "mpa_ray/demo/models/teacher/model.safetensors"}
    excluded = {
        "runs/mine/run.json",
        ".venv/bin/python",
        ".venv-vllm-0.29.0/bin/python",
        ".git/HEAD",
        ".mypy_cache/x",
        "out/students/s/parity/merged/model.safetensors",
        "out/students/s/parity/adapter/adapter_model.safetensors",
        "mpa_ray/__pycache__/a.pyc",
        "tests/unit/test_a.py",
        "benchmarks/results/a.csv",
        "model.safetensors",
    }
    for name in expected | excluded:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert uploaded(tmp_path) == expected | {".rayignore", ".gitignore"}
