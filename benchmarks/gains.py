"""What alignment gains on the bundled world: LoRA and full fine-tuning, with and without replay, at several seeds.

    python benchmarks/gains.py [--seeds 0 1 2] [--images 4000] [--scratch DIR]

For each seed: 4,000 new unlabeled images, 800 held-out questions, one pass of the teacher, and students that start from
the same checkpoint and differ in how they are trained. A question family with at least 5 % of D_PI counts as inside it,
the others as outside: losses outside are forgetting. With `--scratch`, a killed benchmark resumes where it stopped.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.bundled_world import (
    FULL,
    INTERNVL,
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
from mpa_ray.observability.progress import say
from mpa_ray.run.parity_export import read_parity
from mpa_ray.run.run import Run
from mpa_ray.run.training_state import TrainingState

LEVELS: dict[str, dict[str, Any]] = {
    "lora": {**LORA, "replay_share": 0.0},
    "lora-replay": {**LORA, "replay_share": 0.3},
    "full": {**FULL, "replay_share": 0.0},
    "full-replay": {**FULL, "replay_share": 0.3},
}
STUDENTS = {
    **{f"qwen2vl-{name}": (QWEN, level) for name, level in LEVELS.items()},
    "internvl-lora-replay": (INTERNVL, LEVELS["lora-replay"]),
}


def measure(seed: int, num_images: int, folder: Path) -> list[dict[str, Any]]:
    """Run one seed; returns a row for each student."""
    folder.mkdir(parents=True, exist_ok=True)
    make_images(folder / "data", num_images, seed)
    students = {
        name: {"model": model, "level": {"batch_size": 16, "seed": seed, **level}}
        for name, (model, level) in STUDENTS.items()
    }
    tree = tree_of(seed, folder / "data", folder / "run", students)
    subprocess.run(align_command(tree, folder / "gains.yaml"), cwd=ROOT, check=True)
    run = Run.open(tree["run_dir"])
    scores = run.read_json("evaluation/scores.json")
    rows = []
    for name in STUDENTS:
        parity = read_parity(run, name)
        inside = inside_of(parity)
        state = TrainingState.read(run, run.student_dir(name)) or TrainingState()
        rows.append(
            {
                "seed": seed,
                "student": name,
                "num_parity": len(parity),
                "families_inside": sorted(inside),
                **measured(scores, name, "parity", inside),
                "retained": state.retained.to_json(),
            }
        )
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Means over the seeds, and the gain at each seed."""
    lines = [
        "| student | D_PI | before | after | gain (each seed) | outside D_PI: before, after | change |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(row["student"] for row in rows):
        runs = [row for row in rows if row["student"] == name]
        mean = {
            key: statistics.fmean(row[key] for row in runs)
            for key in ("num_parity", "before", "after", "outside_before", "outside_after")
        }
        gains = ", ".join(f"{row['after'] - row['before']:+.1f}" for row in runs)
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
    parser.add_argument("--scratch", type=Path, help="a folder to keep and to resume from; by default a temporary one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        scratch = options.scratch or Path(temporary)
        rows = [row for seed in options.seeds for row in measure(seed, options.images, scratch / f"seed-{seed}")]
    write_results("gains", {"conditions": {**conditions(), "levels": LEVELS}, "rows": rows}, table(rows))
    say(table(rows))


if __name__ == "__main__":
    main()
