"""The grid of an image processor: which images are scaled to it, and to which sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from mpa_ray.config import ModelConfig, resolve_path
from mpa_ray.engine.vllm.rendering import raw_image, scaling_of
from mpa_ray.imaging.decode import MAX_ASPECT_RATIO
from mpa_ray.imaging.grid import ImageGrid
from mpa_ray.imaging.prepare import ImageScaling, PreparedImage
from mpa_ray.leveling.batching import TrainingRow
from mpa_ray.leveling.collator import AnswerCollator
from mpa_ray.models.chat_template import load_processor
from mpa_ray.records import ParitySample
from mpa_ray.tasks.library import TASKS
from tests.families import FAMILIES, file_of, picture, with_limits

TASK = TASKS["demo_world"]


def row() -> TrainingRow:
    return TrainingRow(ParitySample("a#0", "a", "/a", "What is it?", "a box", "?"), 1)


@pytest.fixture(scope="module")
def processors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The processor of each family, saved and loaded."""
    loaded = {}
    for family, make in FAMILIES.items():
        folder = tmp_path_factory.mktemp(family)
        make()[1].save_pretrained(folder)
        loaded[family] = load_processor(str(folder))
    return loaded


@pytest.mark.parametrize("family", ["internvl", "llava_onevision", "smolvlm"])
def test_an_image_of_another_family_is_scaled_to_the_pixel_limits_as_before(
    family: str, processors: dict[str, Any]
) -> None:
    scaling = ImageScaling.of(processors[family], 3136, 12544)
    assert scaling == ImageScaling(3136, 12544)
    image = picture((320, 240))
    prepared = scaling.prepare(file_of(image.size))
    assert isinstance(prepared, PreparedImage)
    assert prepared.image.size == (129, 96)
    assert scaling.processor_arguments([prepared.image]) == {}
    assert scaling.blank().size == (56, 56)


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 600), st.integers(0, 600))
@settings(max_examples=300, deadline=None)
def test_the_grid_has_the_size_that_transformers_computes(width: int, height: int, low: int, more: int) -> None:
    if max(width, height) > 200 * min(width, height):
        return
    limits = (low * 784, (low + more) * 784)
    grid = ImageGrid(28, *limits, processor_limits=limits)
    assert grid.size_of(width, height) == smart_resize(height, width, 28, *limits)[::-1]


@given(st.integers(1, 5000), st.integers(1, 5000))
@settings(max_examples=200, deadline=None)
def test_an_image_has_at_most_as_many_tokens_as_plan_assumes(width: int, height: int) -> None:
    """Plans assume that the largest image has `max_pixels`."""
    model = ModelConfig(model="m")
    grid = ImageGrid(28, model.min_pixels, model.max_pixels, processor_limits=(3136, 12_845_056))
    if max(width, height) < MAX_ASPECT_RATIO * min(width, height):
        columns, rows = (side // 28 for side in grid.size_of(width, height))
        assert columns * rows <= model.max_pixels // 784


def test_sizes_that_the_processor_would_scale_again_are_kept() -> None:
    grid = ImageGrid(28, 12544, 12544, processor_limits=(12544, 12544))
    scaling = ImageScaling(12544, 12544, grid=grid)
    wide, square = (Image.new("RGB", grid.size_of(*size)) for size in ((100, 130), (112, 112)))
    assert (wide.size, square.size) == ((84, 112), (112, 112))
    assert smart_resize(112, 84, 28, 12544, 12544) != (112, 84)
    assert scaling.processor_arguments([square]) == {}
    assert scaling.processor_arguments([wide]) == scaling.processor_arguments([square, wide]) == {"do_resize": False}
    # An image that was not prepared.
    assert scaling.processor_arguments([Image.new("RGB", (100, 130))]) == {}


def test_vllm_gets_an_argument_only_with_images_that_need_it() -> None:
    grid = ImageGrid(28, 12544, 12544, processor_limits=(12544, 12544))
    scaling = ImageScaling(12544, 12544, grid=grid)
    kept, scaled_again = Image.new("RGB", (112, 112)), Image.new("RGB", (84, 112))
    plain = {"multi_modal_data": {"image": kept}, "multi_modal_uuids": {"image": "a"}}
    assert raw_image(kept, "a", scaling) == plain
    assert raw_image(scaled_again, "a", scaling)["mm_processor_kwargs"] == {"do_resize": False}


@pytest.mark.parametrize("arguments", [{"max_pixels": 9}, {"images_kwargs": {"size": 9}}])
def test_arguments_that_change_sizes_in_vllm_replace_the_grid(
    arguments: dict[str, Any], processors: dict[str, Any]
) -> None:
    processor, limits = processors["qwen2_vl"], (3136, 12544, 10**6)
    assert scaling_of(processor, {"mm_processor_kwargs": arguments}, limits) == ImageScaling(*limits)
    for others in ({}, {"mm_processor_kwargs": None}, {"mm_processor_kwargs": {"fps": 1}}):
        assert scaling_of(processor, others, limits) == ImageScaling.of(processor, *limits)


def test_limits_outside_those_of_the_processor_become_the_nearest_of_these(processors: dict[str, Any]) -> None:
    """The processor allows 4 to 64 squares of 28 x 28 pixels."""

    def limits(low: int, high: int) -> tuple[int, int]:
        grid = ImageGrid.of(processors["qwen2_vl"], low * 784, high * 784)
        assert grid is not None
        return grid.min_pixels // 784, grid.max_pixels // 784

    assert limits(16, 32) == (16, 32)
    assert limits(1, 512) == (4, 64)
    assert limits(128, 512) == (64, 64)
    assert limits(1, 2) == (4, 4)


def test_a_processor_that_keeps_all_sizes_has_no_grid(processors: dict[str, Any], tmp_path: Path) -> None:
    processor = with_limits(processors["qwen2_vl"], (3136, 12544), tmp_path)
    processor.image_processor.do_resize = False
    assert ImageGrid.of(processor, 3136, 12544) is None


def test_the_collator_feeds_the_processor_with_images_of_the_grid(processors: dict[str, Any]) -> None:
    """Both images are in one batch, as is one that cannot be read. A processor would scale the first one again."""
    collator = AnswerCollator(processors["qwen3_vl"], TASK, 16 * 1024, 16 * 1024)
    batch = collator([row()] * 3, [file_of((100, 130)), file_of((300, 300)), b""])
    assert batch["image_grid_thw"].tolist() == [[1, 10, 8], [1, 8, 8], [1, 4, 4]]
    assert (batch["labels"] >= 0).any(dim=1).tolist() == [True, True, False]


def test_images_with_and_without_a_grid_have_different_keys(processors: dict[str, Any]) -> None:
    content = file_of((320, 240))
    scalings = [ImageScaling(3136, 12544), ImageScaling.of(processors["qwen2_vl"], 3136, 12544)]
    prepared = [scaling.prepare(content) for scaling in scalings]
    keys = {image.key for image in prepared if isinstance(image, PreparedImage)}
    assert len(keys) == 2


def test_the_images_of_the_bundled_world_are_not_scaled() -> None:
    scaling = ImageScaling.of(load_processor(resolve_path("bundled:demo/models/student")), 3136, 12544)
    image = picture((112, 112))
    prepared = scaling.prepare(file_of(image.size))
    assert isinstance(prepared, PreparedImage)
    assert prepared.image.tobytes() == image.tobytes()
