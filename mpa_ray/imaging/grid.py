"""The grid to which the image processor of Qwen2-VL, Qwen2.5-VL and Qwen3-VL rounds the sides of an image."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image

_PROCESSORS = ("Qwen2VLImageProcessor", "Qwen2VLImageProcessorFast", "Qwen2VLImageProcessorPil")
"""The classes of image processors with this grid. The processors of some other families have the same settings, but
round in another way."""
_MAX_PROCESSED_ASPECT_RATIO = 200
"""The processor raises an error for images with a larger aspect ratio, even if they fit the grid."""


@dataclass(frozen=True)
class ImageGrid:
    """How a processor chooses the size of an image: both sides are multiples of `unit`, with an area within limits."""

    unit: int
    """The side, in pixels, of the square that becomes one token of the language model."""
    min_pixels: int
    max_pixels: int
    processor_limits: tuple[int, int]
    """The smallest and the largest area that the processor allows."""
    resampling: int = Image.Resampling.BICUBIC

    @classmethod
    def of(cls, processor: Any, min_pixels: int, max_pixels: int) -> ImageGrid | None:
        """The grid of a Hugging Face processor; None if its images have no such grid.

        If a limit is outside the processor's own limits, the nearest of the processor's limits replaces it.
        """
        images: Any = getattr(processor, "image_processor", None)
        if type(images).__name__ not in _PROCESSORS or not images.do_resize:
            return None
        grid = cls.within(
            images.patch_size * images.merge_size,
            (min_pixels, max_pixels),
            (images.size["shortest_edge"], images.size["longest_edge"]),
        )
        return replace(grid, resampling=images.resample) if isinstance(images.resample, int) else grid

    @classmethod
    def within(cls, unit: int, limits: tuple[int, int], processor_limits: tuple[int, int]) -> ImageGrid:
        """The grid with the limits of a model. The nearest of the processor's limits replaces one outside of them."""
        low, high = processor_limits
        return cls(unit, min(max(limits[0], low), high), max(min(limits[1], high), low), processor_limits)

    def size_of(self, width: int, height: int) -> tuple[int, int]:
        """The width and height to which a processor with these limits scales an image."""
        return self._rounded(width, height, self.min_pixels, self.max_pixels)

    def scale(self, image: Image.Image) -> Image.Image:
        """Scale an image to the size that a processor with these limits gives it.

        The width is scaled first, as torchvision does. In a single call, Pillow chooses the order of width and height
        by the size, and the order changes pixels.
        """
        width, height = self.size_of(*image.size)
        resampling = Image.Resampling(self.resampling)
        return image.resize((width, image.height), resampling).resize((width, height), resampling)

    def is_kept(self, width: int, height: int) -> bool:
        """Whether the processor keeps the size of an image."""
        is_processed = max(width, height) <= _MAX_PROCESSED_ASPECT_RATIO * min(width, height)
        return is_processed and self._rounded(width, height, *self.processor_limits) == (width, height)

    def fits(self, width: int, height: int) -> bool:
        """Whether both sides are multiples of `unit`."""
        return width % self.unit == height % self.unit == 0

    def limit(self, processor: Any) -> None:
        """Write the limits into a processor, so that it scales an original image to `size_of` the image."""
        images = processor.image_processor
        images.size = type(images.size)(shortest_edge=self.min_pixels, longest_edge=self.max_pixels)

    def _rounded(self, width: int, height: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
        """Do the same as `smart_resize` of transformers, which does not accept all aspect ratios."""
        sides = round(width / self.unit) * self.unit, round(height / self.unit) * self.unit
        area = sides[0] * sides[1]
        if area > max_pixels:
            scale = math.sqrt((width * height) / max_pixels)
            return self._floor(width / scale), self._floor(height / scale)
        if area < min_pixels:
            scale = math.sqrt(min_pixels / (width * height))
            return self._ceil(width * scale), self._ceil(height * scale)
        return sides

    def _floor(self, side: float) -> int:
        return max(self.unit, math.floor(side / self.unit) * self.unit)

    def _ceil(self, side: float) -> int:
        return math.ceil(side / self.unit) * self.unit
