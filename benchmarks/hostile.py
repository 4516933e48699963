"""A hundred thousand hostile records through index, annotate, identify, report and audit: is any lost or duplicated?

    python benchmarks/hostile.py [--num-records 100000] [--seed 0]

The records are divided over sources of every kind. Their names, captions, images, columns, tars and lists are of the
kinds that break programs; a third of the images cannot be shown to a model. The models are scripted, and a fifth of
their replies is hostile, too. A reader that shares no code with the project recounts each run from its files: every
record must be a row with a state and a reason, or counted as left out under the expected label; none may occur twice;
the bytes that were read must be those that were written; no output and no file may hold a traceback. Sources that are
refused as a whole follow, one command each.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import yaml

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks.hostile_records import READS_HEIC, HostileSource
from benchmarks.hostile_recount import Recount
from benchmarks.hostile_refusals import REFUSALS
from benchmarks.hostile_sources import MAKERS
from benchmarks.local_cluster import RAY_SETTINGS, Node, free_port

RESULTS = ROOT / "benchmarks/results"
PHASES = ("index", "annotate", "identify", "report")
NUM_CPUS = 3
_HOSTILE_RATE = 0.2
_TIMEOUT_S = 600
_WRONG_SETUP = 2


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    code: int
    output: str
    errors: str


RunCommand = Callable[[Sequence[str]], Done]
"""Runs a command of mpa_ray, given by its arguments, such as `index --config x.yaml`."""


@dataclass
class SourceResult:
    """What became of the records of a source."""

    source: str
    num_records: int
    num_rows: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)
    """Annotations by state and reason."""
    verdicts: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    """The time of each command."""
    problems: list[str] = field(default_factory=list)


def configuration(source: HostileSource, run_dir: Path, shard_size: int) -> dict[str, Any]:
    """The settings of a run over a source, with models that reply at once."""
    model = {"model": "scripted", "min_pixels": 1, "cpus_per_replica": 0.5}
    engine = {"kind": "scripted", "hostile_rate": _HOSTILE_RATE}
    teacher = {**engine, "inconsistent_rate": 0.1, "unparsable_rate": 0.05, "truncated_rate": 0.05}
    return {
        "run_dir": str(run_dir),
        "task": "demo_world",
        "source": {"shard_size": shard_size, **source.settings},
        "teacher": {**model, "engine": teacher},
        "students": [{**model, "name": "small", "engine": {**engine, "wrong_rate": 0.4}}],
        "limits": {"max_failed_rate": 1.0},
    }


def run_source(source: HostileSource, folder: Path, shard_size: int, run_command: RunCommand) -> SourceResult:
    """Run all phases over a source, and recount the run from its files."""
    result = SourceResult(source.name, source.num_records)
    run_dir, config = folder / "run #1 ~x [é]", folder / "config.yaml"
    config.write_text(yaml.safe_dump(configuration(source, run_dir, shard_size)))
    outputs: list[str] = []
    for words in (*([phase, "--config", str(config)] for phase in PHASES), ["audit", str(run_dir)]):
        started = time.monotonic()
        done = run_command(words)
        result.seconds[words[0]] = round(time.monotonic() - started, 1)
        outputs += [done.output, done.errors]
        if done.code:
            result.problems.append(f"{words[0]}: exit code {done.code}: {done.errors.strip()[-2000:]}")
            return result
    recount = Recount(source, run_dir)
    recount.check_audit(json.loads(done.output))
    recount.check_text("the commands' output", outputs)
    result.num_rows = len(recount.images)
    result.outcomes = recount.outcomes()
    result.verdicts = dict(Counter(row["reason"] or "kept" for row in recount.verdicts).most_common())
    result.left_out = dict(recount.left_out.most_common())
    result.problems = recount.problems
    return result


def run_sources(scratch: Path, num_records: int, seed: int, run_command: RunCommand) -> Iterator[SourceResult]:
    """Make the sources one after the other, and run all phases over each."""
    for make, share in MAKERS:
        folder = scratch / make.__name__
        root = folder / "source [1] #é ~%2F"
        root.mkdir(parents=True)
        source = make(root, max(1, round(share * num_records)), random.Random(f"{seed} {make.__name__}"))
        yield run_source(source, folder, shard_size=min(512, max(16, num_records // 50)), run_command=run_command)
        shutil.rmtree(folder)


def run_refusals(scratch: Path, run_command: RunCommand) -> dict[str, str]:
    """Index each source that must be refused; returns what is wrong, by the source's name."""
    problems: dict[str, str] = {}
    for name, (write, words) in REFUSALS.items():
        folder = scratch / "refused" / name
        folder.mkdir(parents=True)
        source = HostileSource(name, write(folder), lambda row: str(row))
        config = scratch / "refused" / f"{name}.json"
        # YAML is a superset of JSON, which can hold a lone surrogate as an escape.
        config.write_text(json.dumps(configuration(source, scratch / "refused" / f"{name} run", 8)))
        done = run_command(["index", "--config", str(config)])
        lines = done.errors.splitlines()
        if done.code != _WRONG_SETUP or len(lines) != 1 or not lines[0].startswith("ConfigError: source."):
            problems[name] = f"exit code {done.code}, not one line: {done.errors[-1000:]!r}"
        elif words not in lines[0]:
            problems[name] = f"{words!r} is not in {lines[0]!r}"
    return problems


@contextmanager
def own_ray(folder: Path) -> Iterator[RunCommand]:
    """Start Ray once; yields what runs a command as a process that joins it."""
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | RAY_SETTINGS
    environment["RAY_AUTH_MODE"] = "disabled"
    # Not in `folder`, since paths of sockets have to be short.
    ray_folder, port = tempfile.mkdtemp(prefix="hostile-"), free_port()
    arguments = ("--head", f"--port={port}", f"--temp-dir={ray_folder}", "--include-dashboard=false", "--no-monitor")
    node = Node((*arguments, f"--ray-client-server-port={free_port()}"), NUM_CPUS, environment, folder / "ray.log")

    def run_command(words: Sequence[str]) -> Done:
        command = [sys.executable, f"jobs/{words[0]}.py", *words[1:]]
        done = subprocess.run(
            command,
            cwd=ROOT,
            env={**environment, "RAY_ADDRESS": f"127.0.0.1:{port}"},
            capture_output=True,
            text=True,
            check=False,
            timeout=_TIMEOUT_S,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    try:
        node.wait_until_up()
        yield run_command
    finally:
        node.end()
        shutil.rmtree(ray_folder, ignore_errors=True)


def conditions() -> dict[str, Any]:
    return {
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "python": platform.python_version(),
        "ray": version("ray"),
        "pyarrow": version("pyarrow"),
        "pillow": version("pillow"),
        "reads_heic": READS_HEIC,
    }


def summary(sources: list[SourceResult], refused: dict[str, str]) -> dict[str, Any]:
    """Sums over all sources."""
    outcomes: Counter[str] = Counter()
    for source in sources:
        outcomes.update(source.outcomes)
    return {
        "num_records": sum(source.num_records for source in sources),
        "num_rows": sum(source.num_rows for source in sources),
        "num_left_out": sum(sum(source.left_out.values()) for source in sources),
        "outcomes": dict(outcomes.most_common()),
        "num_refused_sources": len(REFUSALS),
        "num_problems": sum(len(source.problems) for source in sources) + len(refused),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-records", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS / "hostile.json")
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    started, sources = time.monotonic(), list[SourceResult]()
    with tempfile.TemporaryDirectory(prefix="mpa_ray-hostile-") as scratch, own_ray(Path(scratch)) as run_command:
        for result in run_sources(Path(scratch), options.num_records, options.seed, run_command):
            sources.append(result)
            seconds = ", ".join(f"{name} {value} s" for name, value in result.seconds.items())
            print(f"{result.source}: {result.num_records} records, {result.num_rows} rows ({seconds})", flush=True)
            print("".join(f"    PROBLEM {problem}\n" for problem in result.problems[:20]), end="", flush=True)
        refused = run_refusals(Path(scratch), run_command)
        print("".join(f"    PROBLEM {name}: {problem}\n" for name, problem in refused.items()), end="")
    total = summary(sources, refused)
    settings = {"seed": options.seed, "hostile_rate": _HOSTILE_RATE, "wall_s": round(time.monotonic() - started)}
    result_file = {
        "conditions": {**conditions(), **settings},
        "summary": total,
        "refused": {name: refused.get(name, "one line, exit code 2") for name in REFUSALS},
        "sources": [asdict(source) for source in sources],
    }
    options.out.write_text(json.dumps(result_file, indent=1) + "\n")
    print(json.dumps(total, indent=1))
    return 1 if total["num_problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
