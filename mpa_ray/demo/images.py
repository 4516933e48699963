"""Write the demo's data: unlabeled images for alignment, and a separate labelled held-out set.

`python -m mpa_ray.demo.images --out DIR` writes `DIR/unlabeled/*.png` without any labels, and `DIR/heldout/` with
images and `questions.jsonl`, which only evaluation reads.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

from mpa_ray.demo.world import FAMILIES, WorldSpec, paint, sample_question, sample_scene
from mpa_ray.observability.progress import Progress, say

HELDOUT_SEED_OFFSET = 1_000_003
"""Added to the seed for the held-out scenes, so that they differ from the unlabeled scenes of the same seed."""


def write_unlabeled(folder: Path, num_images: int, seed: int, spec: WorldSpec) -> None:
    """Write images, named by number, into sub-folders of 1,000 images each. Existing files are kept."""
    rng = random.Random(seed)
    with Progress("draw unlabeled images", num_images, "images") as progress:
        for index in range(num_images):
            scene = sample_scene(spec, rng)
            path = folder / f"{index // 1000:03d}" / f"{index:06d}.png"
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                # The file gets its final name only once it is complete, because later commands keep existing files.
                partial = path.with_suffix(".part")
                paint(scene).save(partial, "PNG")
                partial.replace(path)
            progress.advance(1)


def write_heldout(folder: Path, num_per_family: int, seed: int, spec: WorldSpec) -> None:
    """Write `num_per_family` images for each family, with one question each. `questions.jsonl` is written last."""
    rng = random.Random(seed + HELDOUT_SEED_OFFSET)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows = []
    for family in FAMILIES:
        only = {name: float(name == family) for name in FAMILIES}
        num_written = 0
        while num_written < num_per_family:
            scene = sample_scene(spec, rng)
            question = sample_question(scene, rng, only)
            if question is None:
                continue
            name = f"images/{family}-{num_written:04d}.png"
            paint(scene).save(folder / name)
            rows.append(
                {
                    "question_id": f"{family}-{num_written:04d}",
                    "image": name,
                    "question": question.question,
                    "answers": [question.answer],
                    "family": family,
                }
            )
            num_written += 1
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_data(
    folder: Path, num_images: int, seed: int, num_per_family: int = 100, spec: WorldSpec | None = None
) -> None:
    """Write `unlabeled/` and `heldout/` into a folder. `heldout/` has `num_per_family` questions of every family."""
    spec = spec or WorldSpec()
    write_unlabeled(folder / "unlabeled", num_images, seed, spec)
    write_heldout(folder / "heldout", num_per_family, seed, spec)
    say(f"held-out questions: {len(FAMILIES) * num_per_family} in {folder / 'heldout'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--num-images", type=int, default=4000)
    parser.add_argument("--num-heldout-per-family", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--image-size", type=int, default=112)
    parser.add_argument("--difficulty", type=float, default=0.5)
    options = parser.parse_args()
    spec = WorldSpec(image_size=options.image_size, difficulty=options.difficulty)
    write_data(options.out, options.num_images, options.seed, options.num_heldout_per_family, spec)


if __name__ == "__main__":
    main()
