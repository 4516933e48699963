"""Prepares image files for a model: decodes them, and scales them as the model's exported processor does."""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from PIL import Image

from mpa_ray.config import MAX_IMAGE_PIXELS
from mpa_ray.imaging.decode import ImageProblem, decode, refused
from mpa_ray.imaging.grid import ImageGrid

_SMALL_BYTES = 4 * 2**10
"""Files up to this size are prepared in the thread of the event loop, which is faster."""
_BLANK_SIDE = 56


@dataclass(frozen=True)
class PreparedImage:
    """An image that is ready for a model."""

    image: Image.Image
    """RGB, within the model's pixel limits."""
    key: str
    """Identifies the image in an engine's caches. Equal files that are scaled equally have the same key."""


@dataclass(frozen=True)
class ImageScaling:
    """How the images of one model are scaled."""

    min_pixels: int
    max_pixels: int
    max_image_pixels: int = MAX_IMAGE_PIXELS
    grid: ImageGrid | None = None
    """The grid of the model's processor; None if the processor has none. Without a grid, an image is scaled to the
    pixel limits, and the processor scales it again."""

    @classmethod
    def of(
        cls, processor: Any, min_pixels: int, max_pixels: int, max_image_pixels: int = MAX_IMAGE_PIXELS
    ) -> ImageScaling:
        """The scaling for a model's Hugging Face processor and the model's `pixel_limits`."""
        return cls(min_pixels, max_pixels, max_image_pixels, ImageGrid.of(processor, min_pixels, max_pixels))

    def prepare(self, content: bytes) -> PreparedImage | ImageProblem:
        """Decode a file and scale its image. Returns an `ImageProblem` if the file cannot be used."""
        return prepare(content, self.min_pixels, self.max_pixels, self.max_image_pixels, self.grid)

    async def prepare_in_thread(self, content: bytes) -> PreparedImage | ImageProblem:
        """Call `prepare` in a thread, so that the event loop does not wait; for a small file, call it directly."""
        if len(content) <= _SMALL_BYTES:
            return self.prepare(content)
        return await asyncio.to_thread(self.prepare, content)

    def processor_arguments(self, images: Iterable[Image.Image]) -> dict[str, bool]:
        """Arguments for a call of the model's processor, so that it keeps the sizes of prepared images.

        Only a few sizes need arguments. They occur with extreme aspect ratios, or if `min_pixels` is nearly
        `max_pixels`: the processor scales an original to such a size, but would change an image of this size again.
        """
        if self.grid is None or all(self.grid.is_kept(*image.size) for image in images):
            return {}
        return {"do_resize": False} if all(self.grid.fits(*image.size) for image in images) else {}

    def blank(self) -> Image.Image:
        """An image in the place of one that cannot be used."""
        side = _BLANK_SIDE if self.grid is None else 2 * self.grid.unit
        return Image.new("RGB", (side, side))


def prepare(
    content: bytes,
    min_pixels: int,
    max_pixels: int,
    max_image_pixels: int = MAX_IMAGE_PIXELS,
    grid: ImageGrid | None = None,
) -> PreparedImage | ImageProblem:
    """Decode a file and scale its image, to the grid or else to the pixel limits.

    Returns an `ImageProblem` if the file cannot be used.
    """
    decoded = decode(content, max_image_pixels)
    if isinstance(decoded, ImageProblem):
        return decoded
    digest = hashlib.sha256(content).hexdigest()
    if grid is not None:
        key = f"{digest}-{grid.min_pixels}-{grid.max_pixels}-{grid.unit}"
        return PreparedImage(grid.scale(decoded), key)
    fitted = fit(decoded, min_pixels, max_pixels)
    # Rounding to whole pixels may raise the aspect ratio.
    problem = refused(fitted.size, max_image_pixels)
    if problem:
        return problem
    return PreparedImage(fitted, f"{digest}-{min_pixels}-{max_pixels}")


async def prepare_in_thread(
    content: bytes, min_pixels: int, max_pixels: int, max_image_pixels: int = MAX_IMAGE_PIXELS
) -> PreparedImage | ImageProblem:
    """Prepare an image for a model without a grid. See `ImageScaling.prepare_in_thread`."""
    return await ImageScaling(min_pixels, max_pixels, max_image_pixels).prepare_in_thread(content)


def fit(image: Image.Image, min_pixels: int, max_pixels: int) -> Image.Image:
    """Scale an image so that its area is within the limits; keep its aspect ratio. An image that fits is unchanged."""
    size = fitted_size(image.width, image.height, min_pixels, max_pixels)
    return image if size == image.size else image.resize(size, Image.Resampling.BICUBIC)


def fitted_size(width: int, height: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """The width and height to which `fit` scales an image."""
    area = width * height
    if min_pixels <= area <= max_pixels:
        return width, height
    scale = math.sqrt((max_pixels if area > max_pixels else min_pixels) / area)
    round_ = math.floor if scale < 1 else math.ceil
    return max(1, round_(width * scale)), max(1, round_(height * scale))
