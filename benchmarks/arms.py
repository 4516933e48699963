"""Does the filter help? One student of the bundled world, trained on D_PI and on other sets, at several seeds.

    python benchmarks/arms.py [--seeds 0 1 2] [--images 2000] [--scratch DIR]

For each seed: new unlabeled images, 800 held-out questions, one pass of the teacher, and the demo's student, trained
from the same checkpoint on

- `parity`: D_PI, with the demo's replay (pairs amounting to 50 % of D_PI) and without
- `random`: as many of the teacher's pairs as D_PI holds
- `labels`: correct answers on separate images, equally many for each of the eight question families and about as many
  in total as D_PI holds (81 per family for 2,000 images); the benchmark checks that the held-out set has none of them
- `consistent`: all pairs on which the teacher agrees with itself
- `all`: all pairs

for one epoch each, so an arm with more samples takes more steps. `parity` without replay, `random` and `labels` have
the same budget. In all arms, a tenth of the pairs that the student already answers, up to 256, is kept out of training.
With `--scratch`, a killed benchmark resumes where it stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.bundled_world import (
    LORA,
    QWEN,
    ROOT,
    align_command,
    conditions,
    inside_of,
    make_images,
    measured,
    tree_of,
    write_results,
)
from mpa_ray.config import Arm
from mpa_ray.demo.world import FAMILIES
from mpa_ray.observability.progress import say
from mpa_ray.records import EpochCounts
from mpa_ray.run.parity_export import read_parity
from mpa_ray.run.phase_record import PhaseKey, phase_record
from mpa_ray.run.run import Run

LEVEL = {**LORA, "batch_size": 16}
ARMS: dict[str, tuple[str, Arm]] = {
    "parity, replay": ("small", "parity"),
    "parity": ("no-replay", "parity"),
    "random": ("small", "random"),
    "labels": ("small", "labels"),
    "consistent": ("small", "consistent"),
    "all": ("small", "all"),
}
"""Rows of the table: a student of the run and its arm. Replay applies to D_PI alone."""
LABELS_SEED_OFFSET = 500
"""Gives the labelled set scenes that differ from the held-out sets of all seeds."""
LABELS_PER_IMAGE = 0.325
"""Labelled questions per unlabeled image, about as many as D_PI has."""


def measure(seed: int, num_images: int, folder: Path) -> list[dict[str, Any]]:
    """Run one seed; returns a row for each arm."""
    folder.mkdir(parents=True, exist_ok=True)
    make_images(folder / "data", num_images, seed)
    num_per_family = max(1, round(LABELS_PER_IMAGE * num_images / len(FAMILIES)))
    make_images(folder / "labels", 0, seed + LABELS_SEED_OFFSET, num_per_family)
    if _images(folder / "labels/heldout") & _images(folder / "data/heldout"):
        raise SystemExit(f"seed {seed}: the labelled set holds images of the held-out set")
    tree = tree_for(seed, folder)
    subprocess.run(align_command(tree, folder / "arms.yaml"), cwd=ROOT, check=True)
    run = Run.open(tree["run_dir"])
    scores = run.read_json("evaluation/scores.json")
    inside = inside_of(read_parity(run, "small"))
    rows = []
    for name, (student, arm) in ARMS.items():
        counts = EpochCounts(**run.read_json(f"{run.student_dir(student, arm)}/epoch/manifest.json"))
        record = phase_record(run, PhaseKey("level", student, arm))
        if record is None:
            raise SystemExit(f"seed {seed}: the run has no record of the training on {name}")
        rows.append(
            {
                "seed": seed,
                "arm": name,
                "num_chosen": counts.num_chosen,
                "num_replayed": counts.num_mixed_in,
                "num_samples": counts.num_samples,
                "training_s": record.wall_s,
                "families_inside": sorted(inside),
                **measured(scores, student, arm, inside),
            }
        )
    return rows


def tree_for(seed: int, folder: Path) -> dict[str, Any]:
    """Settings of a run: the demo's student in all arms, and again as a student on D_PI without replay."""
    labels = {"name": "labels", "path": str(folder / "labels/heldout/questions.jsonl")}
    level = {**LEVEL, "seed": seed}
    students = {
        "small": {
            "model": QWEN,
            "level": {**level, "replay_share": 0.5},
            "labels": labels,
            "arms": [arm for student, arm in ARMS.values() if student == "small"],
        },
        "no-replay": {"model": QWEN, "level": {**level, "replay_share": 0.0}},
    }
    return tree_of(seed, folder / "data", folder / "run", students)


def _images(folder: Path) -> set[str]:
    return {hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("images/*.png")}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Means over the seeds, and the gain at each seed."""
    lines = [
        "| arm | samples | training, s | before | after | gain (each seed) | inside: before, after | outside |",
        "|---|---:|---:|---:|---:|---|---:|---:|",
    ]
    for arm in dict.fromkeys(row["arm"] for row in rows):
        runs = [row for row in rows if row["arm"] == arm]
        mean = {
            key: statistics.fmean(row[key] for row in runs)
            for key, value in runs[0].items()
            if isinstance(value, int | float)
        }
        gains = ", ".join(f"{row['after'] - row['before']:+.1f}" for row in runs)
        parts = " | ".join(
            f"{mean[f'{part}_before']:.1f}, {mean[f'{part}_after']:.1f}" for part in ("inside", "outside")
        )
        lines.append(
            f"| {arm} | {mean['num_samples']:.0f} | {mean['training_s']:.0f} | {mean['before']:.1f} | "
            f"{mean['after']:.1f} | {mean['after'] - mean['before']:+.1f} ({gains}) | {parts} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--scratch", type=Path, help="a folder to keep and to resume from; by default a temporary one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        scratch = (options.scratch or Path(temporary)).resolve()
        rows = [row for seed in options.seeds for row in measure(seed, options.images, scratch / f"seed-{seed}")]
    samples = {name: [row["num_samples"] for row in rows if row["arm"] == name] for name in ARMS}
    results = {
        "conditions": {
            **conditions(),
            "images": options.images,
            "seeds": options.seeds,
            "level": LEVEL,
            "epochs": 1,
            "replay_share": {"parity, replay": 0.5, "others": 0.0},
            "samples_of_each_arm_by_seed": samples,
            "labels": "equally many questions of each family, about as many in total as D_PI holds, on other images",
            "training_s": "from the start of Ray Train's workers to the exported checkpoint",
        },
        "rows": rows,
    }
    write_results("arms", results, table(rows))
    say(table(rows))


if __name__ == "__main__":
    main()
