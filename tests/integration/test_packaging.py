"""The sdist and the wheel: what they contain, and the wheel installed outside the checkout."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
import yaml

import mpa_ray
from tests.conftest import write_images

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
BUNDLED_MODELS = ("teacher", "student", "student-internvl")
OPEN_MODELS = """
import json, math, pathlib, sys
from mpa_ray.config import resolve_path
from safetensors import safe_open
from tokenizers import Tokenizer
sizes = {}
for name in json.loads(sys.argv[1]):
    path = resolve_path(f"bundled:demo/models/{name}")
    config = json.loads(pathlib.Path(path, "config.json").read_text())
    assert Tokenizer.from_file(f"{path}/tokenizer.json").get_vocab_size() == config["text_config"]["vocab_size"]
    with safe_open(f"{path}/model.safetensors", "numpy") as weights:
        sizes[path] = sum(math.prod(weights.get_slice(key).get_shape()) for key in weights.keys())
print(json.dumps(sizes))
"""


def check_wheel() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_wheel", ROOT / "cluster/check_wheel.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True)
class Built:
    sdist: Path
    wheel: Path
    sources: set[str]
    """The files of the checkout."""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    module = check_wheel()
    return Built(*module.build(ROOT, tmp_path_factory.mktemp("build")), set(module.source_files(ROOT)))


def test_the_wheel_holds_every_file_of_the_package(built: Built) -> None:
    with zipfile.ZipFile(built.wheel) as archive:
        names = {name for name in archive.namelist() if not name.startswith("mpa_ray-")}
    package = {name for name in built.sources if name.startswith("mpa_ray/")}
    assert names == package
    assert {"mpa_ray/py.typed", "mpa_ray/report/page.html", "mpa_ray/cli/starters/cpu.yaml"} <= names
    assert {f"mpa_ray/demo/models/{name}/model.safetensors" for name in BUNDLED_MODELS} <= names


def test_the_sdist_holds_every_file_of_the_checkout(built: Built) -> None:
    with tarfile.open(built.sdist) as archive:
        files = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    generated = {"PKG-INFO", "setup.cfg"}
    assert {name for name in files - generated if ".egg-info/" not in name} == built.sources


def test_the_wheel_is_small(built: Built) -> None:
    assert built.wheel.stat().st_size <= 30 * 10**6


def test_the_wheel_has_the_license_and_the_extras(built: Built) -> None:
    with zipfile.ZipFile(built.wheel) as archive:
        (folder,) = {name.partition("/")[0] for name in archive.namelist()} - {"mpa_ray"}
        metadata = archive.read(f"{folder}/METADATA").decode()
        license_text = archive.read(f"{folder}/licenses/LICENSE").decode()
        license_of_models = archive.read("mpa_ray/demo/models/LICENSE").decode()
    assert license_text == license_of_models == (ROOT / "LICENSE").read_text()
    assert f"\nVersion: {mpa_ray.__version__}\n" in metadata
    assert re.findall(r"^Provides-Extra: (.*)$", metadata, re.MULTILINE) == list(PROJECT["optional-dependencies"])
    assert "\nLicense-Expression: Apache-2.0\n" in metadata


@pytest.mark.parametrize("name", BUNDLED_MODELS)
def test_a_bundled_model_has_a_card(name: str) -> None:
    folder = ROOT / "mpa_ray/demo/models" / name
    _, head, text = (folder / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(head)["license"] == "apache-2.0"
    assert f"`bundled:demo/models/{name}`" in text
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == ["Training", "Results", "Limits"]
    config = json.loads((folder / "config.json").read_text())
    assert f"{config['text_config']['vocab_size']} tokens" in text
    weights = (folder / "model.safetensors").stat().st_size / 4 / 10**6
    assert f"{weights:.1f} million parameters" in text


def test_every_bundled_model_has_a_test_here() -> None:
    assert {path.parent.name for path in ROOT.glob("mpa_ray/demo/models/*/config.json")} == set(BUNDLED_MODELS)


# Installed


@dataclass(frozen=True)
class Installed:
    bin: Path
    work: Path
    """A folder outside the checkout, where commands run."""

    def run(self, *words: str) -> str:
        hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "RAY_ADDRESS")
        variables = {name: value for name, value in os.environ.items() if name not in hidden}
        command = [str(self.bin / words[0]), *words[1:]]
        done = subprocess.run(command, cwd=self.work, env=variables, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def installed(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel in an environment that also sees the packages of this one."""
    folder = tmp_path_factory.mktemp("installed")
    environment = Installed(folder / "venv/bin", folder / "work")
    environment.work.mkdir()
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True)
    pip = [sys.executable, "-m", "pip", "--python", str(environment.bin / "python")]
    subprocess.run([*pip, "install", "--quiet", "--no-deps", "--no-index", str(built.wheel)], check=True)
    # Written after pip has run, which must see only the new environment.
    paths = json.loads(
        environment.run("python", "-c", "import json, sysconfig; print(json.dumps(sysconfig.get_paths()))")
    )
    line = f"import site; site.addsitedir({sysconfig.get_paths()['purelib']!r})\n"
    Path(paths["purelib"], "packages_of_the_tests.pth").write_text(line)
    return environment


def test_the_installed_package_is_the_wheels(installed: Installed) -> None:
    names = [path.relative_to(ROOT).with_suffix("").as_posix() for path in ROOT.glob("mpa_ray/c[lo]*/*.py")]
    modules = [name.replace("/", ".").removesuffix(".__init__") for name in names if not name.endswith("__main__")]
    code = "import importlib, sys; print(*[importlib.import_module(name).__file__ for name in sys.argv[1:]])"
    files = installed.run("python", "-c", code, *modules).split()
    assert len(files) > 20
    assert all(Path(file).is_relative_to(installed.bin.parent) for file in files)


def test_the_installed_command_answers(installed: Installed) -> None:
    assert installed.run("mpa-ray", "--version") == f"mpa-ray {mpa_ray.__version__}\n"
    assert installed.run("mpa-ray", "--help").startswith("usage: mpa-ray COMMAND")
    dry_run = installed.run("mpa-ray", "setup-cpu", "--dry-run")
    for requirement in (*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["cpu"]):
        name = re.match(r"[\w.-]+", requirement)
        assert name is not None
        assert any(
            word.startswith(name[0]) for line in dry_run.splitlines() for word in shlex.split(line, comments=True)
        )


def test_the_installed_command_plans_a_run_from_its_starter(installed: Installed) -> None:
    write_images(installed.work / "images", 8)
    (installed.work / "my.yaml").write_text(installed.run("mpa-ray", "init", "cpu"))
    words = ["--config", "my.yaml", "--source.path", "images", "--plan.num_images", "8", "--json"]
    plan = json.loads(installed.run("mpa-ray", "plan", *words))
    assert plan["memory"]
    assert "text_vqa" in (installed.work / "my.yaml").read_text()


def test_the_installed_models_open(installed: Installed) -> None:
    sizes = json.loads(installed.run("python", "-c", OPEN_MODELS, json.dumps(BUNDLED_MODELS)))
    assert len(sizes) == len(BUNDLED_MODELS)
    assert all(Path(path).is_relative_to(installed.bin.parent) for path in sizes)
    assert all(1.5e6 < size < 2.5e6 for size in sizes.values())
