"""Write the demo's data: unlabeled images for alignment, and apart from them a labelled held-out set.

`python -m mpa_ray.demo.images --out DIR` makes `DIR/unlabeled/*.png` without a word of truth beside them, and
`DIR/heldout/` with images and `questions.jsonl`, which evaluation alone reads.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

from mpa_ray.demo.world import FAMILIES, WorldSpec, paint, sample_question, sample_scene
from mpa_ray.observability.progress import Progress, say

HELDOUT_SEED_OFFSET = 1_000_003
"""Keeps the held-out scenes apart from the unlabeled ones of the same seed."""


def write_unlabeled(folder: Path, num_images: int, seed: int, spec: WorldSpec) -> None:
    """Images in sub-folders of 1,000, named by number; existing files are left as they are."""
    rng = random.Random(seed)
    with Progress("unlabeled images", num_images, "images") as progress:
        for index in range(num_images):
            scene = sample_scene(spec, rng)
            path = folder / f"{index // 1000:03d}" / f"{index:06d}.png"
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                # A killed command leaves no half of an image under the name that the next one would skip.
                aside = path.with_suffix(".part")
                paint(scene).save(aside, "PNG")
                aside.replace(path)
            progress.advance(1)


def write_heldout(folder: Path, num_per_family: int, seed: int, spec: WorldSpec) -> None:
    """One question on each image, the same number of every family, with `questions.jsonl` written last."""
    rng = random.Random(seed + HELDOUT_SEED_OFFSET)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows = []
    for family in FAMILIES:
        only = {name: float(name == family) for name in FAMILIES}
        found = 0
        while found < num_per_family:
            scene = sample_scene(spec, rng)
            question = sample_question(scene, rng, only)
            if question is None:
                continue
            name = f"images/{family}-{found:04d}.png"
            paint(scene).save(folder / name)
            rows.append(
                {
                    "question_id": f"{family}-{found:04d}",
                    "image": name,
                    "question": question.question,
                    "answers": [question.answer],
                    "family": family,
                }
            )
            found += 1
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


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
    write_unlabeled(options.out / "unlabeled", options.num_images, options.seed, spec)
    write_heldout(options.out / "heldout", options.num_heldout_per_family, options.seed, spec)
    say(f"held-out questions: {len(FAMILIES) * options.num_heldout_per_family} in {options.out / 'heldout'}")


if __name__ == "__main__":
    main()
