"""The bundled world: a seed determines the pixels, and every question has one answer."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mpa_ray.demo.images import write_heldout, write_unlabeled
from mpa_ray.demo.world import FAMILIES, Scene, WorldSpec, describe, paint, questions, sample_question, sample_scene


def scenes(count: int, spec: WorldSpec | None = None, seed: int = 0) -> list[Scene]:
    rng = random.Random(seed)
    return [sample_scene(spec or WorldSpec(), rng) for _ in range(count)]


def test_a_seed_fixes_scenes_and_pixels() -> None:
    for one, again, other in zip(scenes(5), scenes(5), scenes(5, seed=1), strict=True):
        assert one == again
        assert np.array_equal(np.asarray(paint(one)), np.asarray(paint(again)))
        assert not np.array_equal(np.asarray(paint(one)), np.asarray(paint(other)))


def test_no_scene_gives_one_question_two_answers() -> None:
    for scene in scenes(300):
        answers: dict[str, set[str]] = {}
        for question in questions(scene):
            answers.setdefault(question.question, set()).add(question.answer)
        assert all(len(found) == 1 for found in answers.values()), answers


def test_answers_agree_with_the_description() -> None:
    for scene in scenes(200):
        description = describe(scene)
        for question in questions(scene):
            if question.family in ("number", "word", "colour", "shape", "place"):
                assert question.answer in description


def test_every_family_is_sampled_unless_its_weight_is_0() -> None:
    rng = random.Random(0)
    asked = [sample_question(scene, rng) for scene in scenes(400)]
    assert {question.family for question in asked if question} == set(FAMILIES)
    without = [sample_question(scene, rng, {"chart": 0.0}) for scene in scenes(400)]
    assert "chart" not in {question.family for question in without if question}


@pytest.mark.parametrize(
    "spec",
    [
        WorldSpec(image_size=224, num_rows=3, num_cols=4, difficulty=0.0),
        WorldSpec(difficulty=1.0, chart_rate=0.0, ground_tint=0),
        WorldSpec(image_size=56, num_rows=1, num_cols=1, chart_rate=0.0),
    ],
)
def test_worlds_of_other_sizes_can_be_painted(spec: WorldSpec) -> None:
    for scene in scenes(30, spec):
        assert paint(scene).size == (spec.image_size, spec.image_size)
        assert describe(scene)


def test_the_unlabeled_images_have_no_labels_and_differ_from_the_held_out_ones(tmp_path: Path) -> None:
    write_unlabeled(tmp_path / "unlabeled", 12, 0, WorldSpec())
    write_heldout(tmp_path / "heldout", 2, 0, WorldSpec())
    assert {path.suffix for path in (tmp_path / "unlabeled").rglob("*") if path.is_file()} == {".png"}
    rows = [json.loads(line) for line in (tmp_path / "heldout/questions.jsonl").read_text().splitlines()]
    assert [row["family"] for row in rows] == [family for family in FAMILIES for _ in range(2)]
    unlabeled = {path.read_bytes() for path in (tmp_path / "unlabeled").rglob("*.png")}
    for row in rows:
        path = tmp_path / "heldout" / row["image"]
        with Image.open(path) as image:
            assert image.size == (112, 112)
        assert path.read_bytes() not in unlabeled
