"""Build the sdist and the wheel, install the wheel into an empty environment, and try it from another folder.

    python cluster/check_wheel.py
    python cluster/check_wheel.py --folder /tmp/wheel --demo     # keeps the environment, and runs a small demo in it

The wheel is built from the sdist, and the sdist from a copy of the files that git knows.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MAX_WHEEL_BYTES = 30 * 10**6

SCRIPTED = """\
run_dir: runs/scripted
task: demo_world
source: {path: data/unlabeled, shard_size: 8}
teacher: {model: scripted, engine: {kind: scripted}}
students: [{name: small, model: scripted, engine: {kind: scripted, wrong_rate: 0.4}}]
"""
_WHERE = "import mpa_ray; print(mpa_ray.__file__)"


def source_files(root: Path) -> list[str]:
    """The files of a checkout that git knows or does not ignore, relative to its root."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout.splitlines()
    return [name for name in names if (root / name).is_file()]


def build(root: Path, folder: Path) -> tuple[Path, Path]:
    """Build an sdist from a checkout and a wheel from the sdist, with this Python's setuptools and without a network.

    Args:
        root: The checkout. Nothing is written into it.
        folder: Receives both files in `dist/`.
    """
    copy, dist = folder / "source", folder / "dist"
    for name in source_files(root):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / name, copy / name)
    dist.mkdir()
    sdist = dist / _call_backend("build_sdist", copy, dist)
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    return sdist, dist / _call_backend("build_wheel", unpacked, dist)


def _call_backend(function: str, source: Path, out: Path) -> str:
    code = f"import sys; from setuptools import build_meta; print(build_meta.{function}(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(out)], cwd=source, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise SystemExit(f"{function} failed:\n{done.stderr}")
    return done.stdout.splitlines()[-1]


class CheckedEnvironment:
    """An environment outside the checkout, and a folder in which its commands run."""

    def __init__(self, folder: Path) -> None:
        self._bin, self._work = folder / "venv/bin", folder / "work"
        self._work.mkdir(parents=True, exist_ok=True)
        # Neither a path to the checkout nor the calling environment may help.
        hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "RAY_ADDRESS")
        kept = {name: value for name, value in os.environ.items() if name not in hidden}
        self._variables: Mapping[str, str] = {**kept, "PATH": f"{self._bin}:{os.environ['PATH']}"}

    def run(self, *words: str, into: str | None = None) -> str:
        """Run a command of the environment, print how long it took, and return its output.

        Args:
            words: The command.
            into: A file of the working folder that receives the output.

        Raises:
            SystemExit: it failed.
        """
        started = time.monotonic()
        command = [str(self._bin / words[0]), *words[1:]]
        done = subprocess.run(
            command,
            cwd=self._work,
            env=self._variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        print(f"{time.monotonic() - started:7.1f} s  {' '.join(words)[:100]}", flush=True)
        if done.returncode != 0:
            raise SystemExit(f"exit code {done.returncode}:\n{done.stdout[-5000:]}")
        if into is not None:
            (self._work / into).write_text(done.stdout)
        return done.stdout

    def write(self, name: str, text: str) -> None:
        """Write a file of the working folder."""
        (self._work / name).write_text(text)


def check(folder: Path, wheel: Path, demo: bool) -> None:
    """Install a wheel into `folder/venv` and try its commands in `folder/work`.

    Raises:
        SystemExit: a command failed.
    """
    subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], check=True)
    environment = CheckedEnvironment(folder)
    # Older versions of pip download whole wheels to read their metadata.
    environment.run("python", "-m", "pip", "install", "--quiet", "--upgrade", "pip")
    environment.run("python", "-m", "pip", "install", str(wheel))
    where = environment.run("python", "-c", _WHERE).strip()
    if not where.startswith(str(folder)):
        raise SystemExit(f"mpa_ray is imported from {where}, and not from the wheel")
    environment.run("mpa-ray", "--help")
    environment.run("mpa-ray", "init", "cpu", into="my.yaml")
    environment.run("python", "-m", "mpa_ray.demo.images", "--out", "data", "--num-images", "40")
    environment.run("mpa-ray", "setup-cpu")
    environment.run(
        "mpa-ray", "plan", "--config", "my.yaml", "--source.path", "data/unlabeled", "--plan.num_images", "40"
    )
    environment.write("scripted.yaml", SCRIPTED)
    # Scripted models have no weights to train, so `align` is left to the demo.
    for phase in ("index", "annotate", "identify", "report"):
        environment.run("mpa-ray", phase, "--config", "scripted.yaml")
    environment.run("mpa-ray", "audit", "runs/scripted")
    environment.run("python", "-c", "import vllm; print(vllm.__version__)")
    if demo:
        print(environment.run("mpa-ray", "demo", "--num-images", "200", "--out", "runs/demo"))
        environment.run("mpa-ray", "audit", "runs/demo/run")


def _megabytes(folder: Path) -> float:
    return sum(path.lstat().st_size for path in folder.rglob("*")) / 10**6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="an empty folder to work in; by default a temporary one")
    parser.add_argument("--demo", action="store_true", help="also align 200 images with the bundled models")
    options = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary)).resolve()
        sdist, wheel = build(ROOT, folder)
        for file in (sdist, wheel):
            print(f"{file.stat().st_size / 10**6:7.1f} MB {file.name}", flush=True)
        if wheel.stat().st_size > MAX_WHEEL_BYTES:
            raise SystemExit(f"the wheel has more than {MAX_WHEEL_BYTES / 10**6:.0f} MB")
        check(folder, wheel, options.demo)
        print(f"{_megabytes(folder / 'venv'):7.0f} MB in the environment")
    print(f"{time.monotonic() - started:7.1f} s  in all: the wheel works")


if __name__ == "__main__":
    main()
