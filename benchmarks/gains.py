"""What alignment gains on the bundled world: LoRA and full fine-tuning, with and without replay, at several seeds.

    python benchmarks/gains.py [--seeds 0 1 2] [--images 4000] [--scratch DIR]

For each seed: 4,000 new unlabeled images, 800 held-out questions, one pass of the teacher, and students that start from
the same checkpoint and differ in how they are trained. The families of questions that D_PI holds at least 5 % of count
as inside it, the others as outside: what a student loses there is forgetting. A killed benchmark goes on where it was.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from mpa_ray.demo.world import FAMILIES
from mpa_ray.progress import say
from mpa_ray.records import ParitySample
from mpa_ray.store.parity import read_parity
from mpa_ray.store.run import Run

LORA = {"method": {"kind": "lora", "rank": 32, "alpha": 64}, "learning_rate": 1e-3}
FULL = {"method": {"kind": "full"}, "learning_rate": 3e-4}
LEVELS: dict[str, dict[str, Any]] = {
    "lora": {**LORA, "replay_share": 0.0},
    "lora-replay": {**LORA, "replay_share": 0.3},
    "full": {**FULL, "replay_share": 0.0},
    "full-replay": {**FULL, "replay_share": 0.3},
}
STUDENTS = {
    **{f"qwen2vl-{name}": ("bundled:demo/models/student", level) for name, level in LEVELS.items()},
    "internvl-lora-replay": ("bundled:demo/models/student-internvl", LEVELS["lora-replay"]),
}
_INSIDE = 0.05
"""A family with at least this share of D_PI is inside it."""
_STARTS = {
    "count": ("How many",), "place": ("What colour is the object at",), "colour": ("What colour is the",),
    "shape": ("What shape",), "position": ("Where",), "number": ("What number",), "word": ("What word",),
    "chart": ("Which bar",),
}  # fmt: skip
"""How the questions of each family begin; the more particular first."""


def family_of(question: str) -> str:
    return next((name for name, starts in _STARTS.items() if question.startswith(starts)), "other")


def tree_of(seed: int, folder: Path) -> dict[str, Any]:
    tree: dict[str, Any] = yaml.safe_load((ROOT / "mpa_ray/demo/demo.yaml").read_text())
    tree["run_dir"], tree["source"]["path"] = str(folder / "run"), str(folder / "data/unlabeled")
    tree["evaluate"]["benchmarks"] = [{"name": "heldout", "path": str(folder / "data/heldout/questions.jsonl")}]
    tree["annotate"]["sampling"]["seed"] = seed
    template, tree["students"] = tree["students"][0], []
    for name, (model, level) in STUDENTS.items():
        settings = {"name": name, "model": model, "level": {"batch_size": 16, "seed": seed, **level}}
        tree["students"].append(copy.deepcopy(template) | settings)
    return tree


def measure(seed: int, num_images: int, folder: Path) -> list[dict[str, Any]]:
    """A row for each student."""
    folder.mkdir(parents=True, exist_ok=True)
    made = ["-m", "mpa_ray.demo.images", "--out", str(folder / "data"), "--num-images", str(num_images)]
    subprocess.run([sys.executable, *made, "--seed", str(seed)], cwd=ROOT, check=True)
    tree = tree_of(seed, folder)
    config = folder / "gains.yaml"
    config.write_text(yaml.safe_dump(tree))
    subprocess.run([sys.executable, "jobs/align.py", "--config", str(config)], cwd=ROOT, check=True)
    run = Run.open(tree["run_dir"])
    scores = run.read_json("evaluation/scores.json")["heldout"]["models"]
    rows = []
    for student in tree["students"]:
        name = student["name"]
        parity = read_parity(run, name)
        inside = inside_of(parity)
        before, after = (scores[f"{name}.{when}"]["groups"] for when in ("before", "after"))
        training = run.read_json(f"students/{name}/parity/training.json")
        rows.append(
            {
                "seed": seed, "student": name, "num_parity": len(parity), "families_inside": sorted(inside),
                "before": score(before, ["all"]), "after": score(after, ["all"]),
                "inside_before": score(before, families(inside)), "inside_after": score(after, families(inside)),
                "outside_before": score(before, families(set(FAMILIES) - inside)),
                "outside_after": score(after, families(set(FAMILIES) - inside)),
                "retained": training["retained"],
            }
        )  # fmt: skip
    return rows


def inside_of(parity: list[ParitySample]) -> set[str]:
    found = Counter(family_of(sample.question) for sample in parity)
    return {name for name in FAMILIES if found[name] >= _INSIDE * len(parity)}


def families(names: set[str]) -> list[str]:
    return [f"family: {name}" for name in sorted(names)]


def score(groups: dict[str, Any], names: list[str]) -> float:
    """Exact match in %, over all questions of the groups."""
    total: int = sum(groups[name]["num_questions"] for name in names)
    right: float = sum(groups[name]["mean"] * groups[name]["num_questions"] for name in names)
    return round(100 * right / total, 2)


def table(rows: list[dict[str, Any]]) -> str:
    """Means over the seeds, with the lowest and the highest gain."""
    lines = ["| student | D_PI | before | after | gain (each seed) | outside D_PI: before, after | change |",
             "|---|---|---|---|---|---|---|"]  # fmt: skip
    for name in dict.fromkeys(row["student"] for row in rows):
        found = [row for row in rows if row["student"] == name]
        mean = {key: statistics.fmean(row[key] for row in found)
                for key in ("num_parity", "before", "after", "outside_before", "outside_after")}  # fmt: skip
        gains = ", ".join(f"{row['after'] - row['before']:+.1f}" for row in found)
        lines.append(
            f"| {name} | {mean['num_parity']:.0f} | {mean['before']:.1f} | {mean['after']:.1f} | "
            f"{mean['after'] - mean['before']:+.1f} ({gains}) | {mean['outside_before']:.1f}, "
            f"{mean['outside_after']:.1f} | {mean['outside_after'] - mean['outside_before']:+.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--scratch", type=Path, help="kept, and gone on with; by default a folder that is deleted")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        scratch = options.scratch or Path(temporary)
        rows = [row for seed in options.seeds for row in measure(seed, options.images, scratch / f"seed-{seed}")]
    results = {
        "conditions": {
            "command": " ".join(["python", *sys.argv]), "cores": len(os.sched_getaffinity(0)),
            "versions": {name: version(name) for name in ("ray", "torch", "transformers", "peft")},
            "levels": LEVELS,
        },
        "rows": rows,
    }  # fmt: skip
    (ROOT / "benchmarks/results/gains.json").write_text(json.dumps(results, indent=2) + "\n")
    (ROOT / "benchmarks/results/gains.md").write_text(table(rows) + "\n")
    say(table(rows))


if __name__ == "__main__":
    main()
