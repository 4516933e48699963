"""A million images through the complete graph with scripted engines: do time per image and memory stay constant?

    python benchmarks/scale.py [--sizes 50000 250000 1000000] [--shard-size 1024]

Each size is a separate run: index, annotate (teacher) and identify (student), with the commands that a user types.
Images are 16 x 16 PNGs that are made when they are read. Everything else is real: Ray Data, fetching, decoding,
duplicates, prompts, parsing, verdicts, Parquet files, commit markers. Memory is sampled twice a second. A phase's time
is the time between its first and its last committed shard; `wall_s` also includes the start of Ray and of the engines,
some seconds for each command.
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
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import yaml

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
RESULTS = ROOT / "benchmarks/results"
COMMITS = {"index": "corpus", "annotate": "annotations", "identify": "verdicts/small"}
SAMPLE_EVERY_S = 0.5
MIB = 2**20


@dataclass(frozen=True)
class Sample:
    """Memory in use at one moment, in MiB."""

    at_s: float
    """Seconds since the first command of this size began."""
    phase: str
    driver: float
    """Resident memory of the driver's process."""
    node: float
    """Memory in use on the machine, less the memory that was in use before."""


@dataclass(frozen=True)
class Phase:
    """The time of one command of a run."""

    wall_s: float
    """From the command's start to its end."""
    steady_s: float
    """From its first committed shard to its last."""
    images_per_s: float
    """Rate within `steady_s`, which does not count the images of the first shard."""


def configuration(num_images: int, shard_size: int, run_dir: Path) -> dict[str, Any]:
    """Scripted engines that reply at once and do not scale images, so that everything else is measured."""
    model = {"model": "scripted", "min_pixels": 1, "cpus_per_replica": 1}
    return {
        "run_dir": str(run_dir),
        "task": "demo_world",
        "source": {"path": f"synthetic://{num_images}", "shard_size": shard_size},
        "teacher": {**model, "engine": {"kind": "scripted", "inconsistent_rate": 0.1, "unparsable_rate": 0.02}},
        "students": [{**model, "name": "small", "engine": {"kind": "scripted", "wrong_rate": 0.4}}],
    }


def measure(num_images: int, shard_size: int) -> dict[str, Any]:
    """Measure a run with this many images: times, memory over time, and the counts of the audit."""
    with tempfile.TemporaryDirectory(prefix="mpa_ray-scale-") as scratch:
        run_dir, config = Path(scratch, "run"), Path(scratch, "config.yaml")
        config.write_text(yaml.safe_dump(configuration(num_images, shard_size, run_dir)))
        before, started = psutil.virtual_memory().used, time.monotonic()
        samples: list[Sample] = []
        phases = {}
        for job, dataset in COMMITS.items():
            began = time.monotonic()
            for driver, node in watched([f"jobs/{job}.py", "--config", str(config)]):
                at_s = round(time.monotonic() - started, 1)
                samples.append(Sample(at_s, job, round(driver / MIB), round((node - before) / MIB)))
            phases[job] = phase(run_dir / dataset / "commits", num_images, time.monotonic() - began)
            print(f"{num_images}: {job} {phases[job]}", flush=True)
        audit = subprocess.run(
            [sys.executable, "jobs/audit.py", str(run_dir)], cwd=ROOT, capture_output=True, text=True, check=True
        )
        counts = json.loads(audit.stdout)
    steady_s = sum(p.steady_s for p in phases.values())
    return {
        "num_images": num_images,
        "shard_size": shard_size,
        "images_per_s": round(num_images / steady_s, 1),
        "ms_per_image": round(1000 * steady_s / num_images, 4),
        "peak_driver_mib": max(s.driver for s in samples),
        "peak_node_mib": max(s.node for s in samples),
        "phases": {job: asdict(p) for job, p in phases.items()},
        "counts": {name: counts[name] for name in ("images", "annotated", "kept", "dropped", "failed", "problems")},
        "memory": [asdict(s) for s in samples],
    }


def watched(command: list[str]) -> Iterator[tuple[int, int]]:
    """Run a command to its end, and keep yielding the memory of its process and that of the machine, in bytes."""
    with subprocess.Popen([sys.executable, *command], cwd=ROOT, stdout=subprocess.DEVNULL) as driver:
        process = psutil.Process(driver.pid)
        while driver.poll() is None:
            try:
                yield process.memory_info().rss, psutil.virtual_memory().used
            except psutil.NoSuchProcess:
                break
            time.sleep(SAMPLE_EVERY_S)
    if driver.returncode:
        raise SystemExit(f"{' '.join(command)} ended with exit code {driver.returncode}")


def phase(commits: Path, num_images: int, wall_s: float) -> Phase:
    """The times of a command, from the ages of its commit markers."""
    times = sorted(entry.stat().st_mtime for entry in os.scandir(commits))
    steady_s = times[-1] - times[0]
    counted = num_images * (len(times) - 1) / len(times)
    return Phase(round(wall_s, 1), round(steady_s, 1), round(counted / steady_s, 1))


def plot(sizes: list[dict[str, Any]], path: Path) -> None:
    """Draw memory over time, in a panel for each size."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "mpa_ray"
    figure, panels = pyplot.subplots(1, len(sizes), figsize=(4.2 * len(sizes), 3.2), sharey=True, squeeze=False)
    for panel, size in zip(panels[0], sizes, strict=True):
        at_s = [s["at_s"] for s in size["memory"]]
        panel.plot(at_s, [s["node"] for s in size["memory"]], label="whole node", color="#888888")
        panel.plot(at_s, [s["driver"] for s in size["memory"]], label="driver", color="#1f5fa8")
        panel.axhline(1500, linestyle=":", color="#c0392b", label="driver's limit")
        panel.set_title(f"{size['num_images']:,} images: {size['images_per_s']:,.0f} images/s")
        panel.set_xlabel("seconds")
    panels[0][0].set_ylabel("MiB")
    panels[0][0].legend()
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def conditions() -> dict[str, Any]:
    return {
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "python": platform.python_version(),
        "ray": version("ray"),
        "pyarrow": version("pyarrow"),
        "images": "16 x 16 grey PNG, made when read",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[50_000, 250_000, 1_000_000])
    parser.add_argument("--shard-size", type=int, default=1024, help="Ray's cost is per shard, not per image")
    parser.add_argument("--out", type=Path, default=RESULTS / "scale.json")
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    sizes: list[dict[str, Any]] = []
    for num_images in options.sizes:
        sizes.append(measure(num_images, options.shard_size))
        ratio = sizes[-1]["ms_per_image"] / sizes[0]["ms_per_image"]
        result = {"conditions": conditions(), "time_per_image_last_over_first": round(ratio, 3), "sizes": sizes}
        options.out.write_text(json.dumps(result, indent=1) + "\n")
        print(json.dumps({k: v for k, v in sizes[-1].items() if k != "memory"}, indent=1), flush=True)
    plot(sizes, options.out.with_suffix(".svg"))


if __name__ == "__main__":
    main()
