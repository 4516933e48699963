"""An exported processor alone makes of an original image what training and engines saw."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from mpa_ray.imaging.grid import ImageGrid
from mpa_ray.imaging.prepare import ImageScaling, PreparedImage
from mpa_ray.models.chat_template import load_processor
from tests.families import FAMILIES, file_of, picture, with_limits

NAMED_SIZES = [
    *((320, 240), (240, 320), (1920, 1080), (1080, 1920)),
    *((1, 1), (5, 3), (28, 28), (112, 112), (113, 112)),
    *((2000, 11), (11, 2000), (1500, 12), (40, 7900), (995, 5)),
]
"""Photos, tiny images, and images whose sides differ up to 199-fold."""
GRIDS = {"qwen2_vl": 28, "qwen2_5_vl": 28, "qwen3_vl": 32}
PUBLIC_LIMITS = {28: (3136, 12_845_056), 32: (65_536, 16_777_216)}
"""The limits in the public checkpoints of Qwen2-VL and Qwen2.5-VL, and of Qwen3-VL, by the unit of their grids."""

LIMITS = [(128, 512), (4, 16), (16, 16), (3, 5)]
"""Limits of the area, in squares of the grid: the default ones, narrow ones, and those that few sizes meet."""


def sizes(num: int = 60) -> list[tuple[int, int]]:
    rng = random.Random(7)
    drawn = [(int(10 ** rng.uniform(0.3, 2.9)), int(10 ** rng.uniform(0.3, 2.9))) for _ in range(num)]
    return [*NAMED_SIZES, *(size for size in drawn if max(size) < 200 * min(size))]


def exported(processor: Any, limits: tuple[int, int], folder: Path) -> Any:
    """The processor that an export writes, loaded as a user loads it."""
    grid = ImageGrid.of(processor, *limits)
    assert grid is not None
    copy = with_limits(processor, grid.processor_limits, folder)
    grid.limit(copy)
    copy.save_pretrained(folder)
    return load_processor(str(folder))


def compared(processor: Any, alone: Any, limits: tuple[int, int]) -> dict[tuple[int, int], float]:
    """For each size: the largest difference of a pixel, of 255, between training and the exported processor alone."""
    scaling, differences = ImageScaling.of(processor, *limits), {}
    for size in sizes():
        prepared = scaling.prepare(file_of(size))
        assert isinstance(prepared, PreparedImage)
        keep = scaling.processor_arguments([prepared.image])
        ours = processor.image_processor(images=[prepared.image], do_normalize=False, return_tensors="pt", **keep)
        user = alone.image_processor(images=[picture(size)], do_normalize=False, return_tensors="pt")
        assert torch.equal(ours["image_grid_thw"], user["image_grid_thw"]), size
        differences[size] = float((ours["pixel_values"] - user["pixel_values"]).abs().max()) * 255
    return differences


@pytest.mark.parametrize("limits", LIMITS, ids=str)
@pytest.mark.parametrize("family", GRIDS)
def test_an_exported_processor_alone_makes_of_an_image_what_training_saw(
    family: str, limits: tuple[int, int], tmp_path: Path
) -> None:
    unit = GRIDS[family]
    pixels = (limits[0] * unit * unit, limits[1] * unit * unit)
    processor = with_limits(FAMILIES[family]()[1], PUBLIC_LIMITS[unit], tmp_path / "base")
    alone = exported(processor, pixels, tmp_path / "exported")
    differences = compared(processor, alone, pixels)
    assert len(differences) >= 52
    assert max(differences.values()) < 2.01
    # The exported student is measured, and may be trained again, with its own processor.
    assert compared(alone, alone, pixels) == pytest.approx(differences)
