"""The examples of a model card prepare images as mpa_ray does, and give the same answers."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mpa_ray.config import RunConfig, resolve_path
from mpa_ray.imaging.prepare import PreparedImage, prepare
from mpa_ray.models.chat_template import load_processor, render
from mpa_ray.phases.context import installed_versions
from mpa_ray.report.card_usage import section_use, usage
from mpa_ray.tasks.library import TASKS
from mpa_ray.tasks.task import Task
from tests.card_examples import SIZES, TASK, blocks, card, config_in, exported_student


def executed(*code: str) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "example"}
    for block in code:
        exec(block, names)
    return names


def noise(size: tuple[int, int], mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(size).integers(0, 256, (size[1], size[0], len(mode)), np.uint8)
    return Image.fromarray(pixels)


def assert_equally_prepared(path: Path, names: dict[str, Any]) -> None:
    prepared = prepare(path.read_bytes(), names["MIN_PIXELS"], names["MAX_PIXELS"])
    assert isinstance(prepared, PreparedImage)
    assert np.array_equal(np.asarray(names["load_image"](path)), np.asarray(prepared.image))


def test_an_example_prepares_images_of_all_sizes_as_training_and_engines_do(tmp_path: Path) -> None:
    names, rng = executed(blocks(card(tmp_path, processor_scales=False))[0]), random.Random(2)
    assert (names["MIN_PIXELS"], names["MAX_PIXELS"]) == (3136, 12544)
    path = tmp_path / "image.png"
    random_sizes = [(int(10 ** rng.uniform(0.5, 3)), int(10 ** rng.uniform(0.5, 3))) for _ in range(40)]
    for size in [*SIZES, (1, 1), (56, 56), (113, 112), (1500, 12), *random_sizes]:
        noise(size).save(path)
        assert_equally_prepared(path, names)


def test_an_example_rotates_images_and_paints_transparency_white_as_training_does(tmp_path: Path) -> None:
    names = executed(blocks(card(tmp_path, processor_scales=False))[0])
    noise((300, 200), "RGBA").save(tmp_path / "transparent.png")
    exif = Image.Exif()
    exif[274] = 6
    noise((300, 200)).save(tmp_path / "rotated.png", exif=exif)
    noise((30, 20)).convert("P").save(tmp_path / "palette.gif", transparency=3)
    for path in tmp_path.glob("*.*"):
        assert_equally_prepared(path, names)


@pytest.mark.parametrize("name", sorted(TASKS))
def test_an_example_has_the_prompt_of_the_task(name: str, tmp_path: Path) -> None:
    student = config_in(tmp_path).students[0]
    names = executed(blocks(usage(student, TASKS[name], 32, processor_scales=True))[0])
    processor = load_processor(resolve_path(student.model))
    expected = render(processor, TASKS[name].answer_prompt(" What is in {this}? "))
    assert names["prompt"](processor, " What is in {this}? ") == expected


@pytest.mark.parametrize("processor_scales", [False, True])
def test_the_section_of_a_card_can_be_copied_to_another_card(processor_scales: bool, tmp_path: Path) -> None:
    config = config_in(tmp_path)
    use = section_use(card(tmp_path, processor_scales))
    assert use == usage(config.students[0], TASK, 8, processor_scales)
    assert ("MIN_PIXELS" in use) != processor_scales
    assert section_use("# A card that a user wrote") == ""


def test_the_examples_of_the_documentation_are_those_of_a_card(tmp_path: Path) -> None:
    page = Path(__file__).parents[2] / "docs/using-a-student.md"
    assert blocks(page.read_text()) == blocks(card(tmp_path))


def test_an_example_keeps_braces_quotes_and_fences_of_a_prompt(tmp_path: Path) -> None:
    config: RunConfig = config_in(tmp_path)
    fields = {"annotation_prompt": "{format}", "answer_prompt": '""" {{x}} é \\n\n```\n{question}\''}
    task = Task.model_validate({"name": "odd", **fields})
    code = blocks(usage(config.students[0], task, 32, processor_scales=True))
    assert len(code) == 3
    names = executed(code[0])
    assert names["PROMPT"].format(question="q") == task.answer_prompt("q")


def test_the_example_for_transformers_gives_the_answers_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = exported_student(tmp_path)
    folder = tmp_path / "student/merged"
    noise((50, 50)).save(folder / "image.png")
    monkeypatch.chdir(folder)
    names = executed(*blocks((folder / "README.md").read_text())[:2])
    assert capsys.readouterr().out.strip()
    answers = [names["answer"](row.uri, row.question) for row in expected.answers]
    assert answers == [row.answer for row in expected.answers]
    assert len(set(answers)) > 2
    # The exported processor scales the original: 320 x 240 becomes 112 x 84.
    inputs = names["processor"].image_processor(images=[Image.open(expected.answers[0].uri)], return_tensors="pt")
    assert inputs["image_grid_thw"].tolist() == [[1, 6, 8]]


def test_a_card_says_which_versions_of_transformers_read_the_student(tmp_path: Path) -> None:
    assert "transformers" in installed_versions()
    assert "needs transformers 5; the table above has the version that wrote it" in section_use(card(tmp_path))
