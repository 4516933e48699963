"""The tokens and pixels that a model's processor makes of an image, from the checkpoint's settings alone.

Each rule follows the image processor of one family in transformers, or in the checkpoint's remote code. Tests compare
the rules with the processors of transformers. Tokens between the tiles of an image, such as line breaks, are not
counted (see `WITH_MARKERS`).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any, ClassVar

from mpa_ray.imaging.grid import ImageGrid
from mpa_ray.imaging.prepare import fitted_size

WITH_MARKERS = 1.05
"""With the marks between its tiles, an image has at most this many times its tokens without the marks."""
_MAX_ASPECT_RATIO = 200
"""The search for the image with the most tokens tries aspect ratios up to this one."""
_RATIO_STEP = 1.02
"""In this search, each aspect ratio is this many times the previous one."""
_MAX_TOKENS = 10**7
"""A rule that gives an image more tokens is an error."""
_MAX_TILES = 1000
"""A setting of more tiles is an error."""
_MAX_SPLIT_SIDE = 4096
"""The largest side to which the processor of Idefics3 scales an image."""
_MAX_UNPAD_RATIO = 1.1
"""LLaVA-OneVision reduces the tokens of an image if they exceed its limit by more than the square of this factor."""


class ImageTokenRule(ABC):
    """How many tokens of the language model stand for an image of a given size."""

    frames: ClassVar[int] = 1
    """How often the vision tower gets each pixel."""

    @abstractmethod
    def tokens(self, width: int, height: int) -> int:
        """The tokens of an image that the processor gets with this width and height."""

    @abstractmethod
    def num_pixels(self, width: int, height: int) -> int:
        """The pixels that the vision tower gets for such an image, in all tiles together."""

    def scaled_tokens(self, width: int, height: int, min_pixels: int, max_pixels: int) -> int:
        """The tokens of an image that is scaled to the pixel limits of a model before its processor gets it."""
        return self.tokens(*fitted_size(width, height, min_pixels, max_pixels))

    def most_tokens(self, min_pixels: int, max_pixels: int) -> int:
        """The most tokens that any image has within the pixel limits of a model."""
        return max(self.tokens(*size) for size in _sizes_within(min_pixels, max_pixels))

    def most_pixels(self, min_pixels: int, max_pixels: int) -> int:
        """The most pixels that the vision tower gets for any image within the pixel limits of a model."""
        return max(self.num_pixels(*size) for size in _sizes_within(min_pixels, max_pixels))


def _sizes_within(min_pixels: int, max_pixels: int) -> Iterator[tuple[int, int]]:
    """Sizes of images at both pixel limits, with aspect ratios from 1 to the largest one, in both orientations."""
    num_steps = math.ceil(math.log(_MAX_ASPECT_RATIO) / math.log(_RATIO_STEP))
    for area, step in product({min_pixels, max_pixels}, range(num_steps + 1)):
        short = max(1, math.isqrt(math.ceil(area / _RATIO_STEP**step)))
        long = max(short, math.floor(area / short))
        yield from {(long, short), (short, long)}


@dataclass(frozen=True)
class FixedTokens(ImageTokenRule):
    """Every image has the same size and the same number of tokens."""

    num_tokens: int
    side: int
    """Pixels of the image's side."""

    def tokens(self, width: int, height: int) -> int:  # noqa: ARG002
        return self.num_tokens

    def num_pixels(self, width: int, height: int) -> int:  # noqa: ARG002
        return self.side**2


@dataclass(frozen=True)
class GridTokens(ImageTokenRule):
    """Qwen2-VL and its successors: a token for each square of `unit` pixels, after rounding within the limits."""

    frames: ClassVar[int] = 2
    unit: int
    min_pixels: int
    max_pixels: int

    def tokens(self, width: int, height: int) -> int:
        return self.scaled_tokens(width, height, self.min_pixels, self.max_pixels)

    def scaled_tokens(self, width: int, height: int, min_pixels: int, max_pixels: int) -> int:
        grid = ImageGrid.within(self.unit, (min_pixels, max_pixels), (self.min_pixels, self.max_pixels))
        columns, rows = grid.size_of(width, height)
        return (columns // self.unit) * (rows // self.unit)

    def num_pixels(self, width: int, height: int) -> int:
        return self.tokens(width, height) * self.unit**2

    def most_tokens(self, min_pixels: int, max_pixels: int) -> int:
        grid = ImageGrid.within(self.unit, (min_pixels, max_pixels), (self.min_pixels, self.max_pixels))
        return max(1, grid.max_pixels // self.unit**2)

    def most_pixels(self, min_pixels: int, max_pixels: int) -> int:
        return self.most_tokens(min_pixels, max_pixels) * self.unit**2


@dataclass(frozen=True)
class TileTokens(ImageTokenRule):
    """InternVL: the image is cut into the grid of tiles that is closest to its aspect ratio.

    If there are several tiles, a small copy of the whole image is another one.
    """

    side: int
    """Pixels of a tile's side. It matters for the tokens only if several grids have the same aspect ratio."""
    tokens_per_tile: int
    min_tiles: int
    max_tiles: int
    has_thumbnail: bool = True

    def tokens(self, width: int, height: int) -> int:
        return self._num_tiles(width, height) * self.tokens_per_tile

    def num_pixels(self, width: int, height: int) -> int:
        return self._num_tiles(width, height) * self.side**2

    def _num_tiles(self, width: int, height: int) -> int:
        nearest, num_tiles = math.inf, 1
        for columns, rows in _tile_grids(self.min_tiles, self.max_tiles):
            distance = abs(width / height - columns / rows)
            is_large = width * height > 0.5 * self.side**2 * columns * rows
            if distance < nearest or (distance == nearest and is_large):
                nearest, num_tiles = distance, columns * rows
        return num_tiles + (self.has_thumbnail and num_tiles > 1)


@cache
def _tile_grids(min_tiles: int, max_tiles: int) -> tuple[tuple[int, int], ...]:
    """All grids of columns and rows with a number of tiles within the limits, those with fewer tiles first."""
    sides = range(1, max_tiles + 1)
    grids = (grid for grid in product(sides, sides) if min_tiles <= grid[0] * grid[1] <= max_tiles)
    return tuple(sorted(grids, key=lambda grid: grid[0] * grid[1]))


@dataclass(frozen=True)
class SplitTokens(ImageTokenRule):
    """Idefics3 and SmolVLM: the longest side is scaled to `longest_side`, up or down, and the image is cut into tiles.

    If there are several tiles, a small copy of the whole image is another one.
    """

    longest_side: int
    tile_side: int
    tokens_per_tile: int

    def tokens(self, width: int, height: int) -> int:
        return self._num_tiles(width, height) * self.tokens_per_tile

    def num_pixels(self, width: int, height: int) -> int:
        return self._num_tiles(width, height) * self.tile_side**2

    def _num_tiles(self, width: int, height: int) -> int:
        longest = min(self.longest_side, _MAX_SPLIT_SIDE)
        shortest = int(longest * min(width, height) / max(width, height))
        # The processor makes the shorter side even, then scales both sides until the longer one is a whole number of
        # tiles.
        shortest += shortest % 2
        num_along = math.ceil(longest / self.tile_side)
        num_across = math.ceil(int(num_along * self.tile_side * shortest / longest) / self.tile_side)
        num_tiles = num_along * max(1, num_across)
        return num_tiles + (num_tiles > 1)


@dataclass(frozen=True)
class AnyResolutionTokens(ImageTokenRule):
    """LLaVA-NeXT and LLaVA-OneVision: tiles of the best resolution in a list without padding, and the whole image.

    Each row of patches ends with another token.
    """

    resolutions: tuple[tuple[int, int], ...]
    """Pairs of height and width."""
    side: int
    """Pixels of a tile's side."""
    patches: int
    """Patches along a tile's side."""
    max_tiles: int | None
    """The tokens of images with more tiles are reduced to about the tokens of this number of tiles. None means no
    limit."""

    def tokens(self, width: int, height: int) -> int:
        best_height, best_width = self._best_resolution(width, height)
        rows, columns = best_height // self.side * self.patches, best_width // self.side * self.patches
        if width / height > columns / rows:
            rows -= (rows - int(round(height * columns / width, 7))) // 2 * 2
        else:
            columns -= (columns - int(round(width * rows / height, 7))) // 2 * 2
        if self.max_tiles is not None:
            ratio = math.sqrt(rows * columns / (self.max_tiles * self.patches**2))
            if ratio > _MAX_UNPAD_RATIO:
                rows, columns = int(rows // ratio), int(columns // ratio)
        return rows * (columns + 1) + self.patches**2

    def num_pixels(self, width: int, height: int) -> int:
        best_height, best_width = self._best_resolution(width, height)
        return best_height * best_width + self.side**2

    def _best_resolution(self, width: int, height: int) -> tuple[int, int]:
        """The resolution that keeps the most pixels of the image, and of those the one with the least padding."""

        def kept_and_padding(resolution: tuple[int, int]) -> tuple[int, int]:
            scale = min(resolution[1] / width, resolution[0] / height)
            kept = min(int(width * scale) * int(height * scale), width * height)
            return kept, kept - resolution[0] * resolution[1]

        return max(self.resolutions, key=kept_and_padding)


@dataclass(frozen=True)
class SliceTokens(ImageTokenRule):
    """MiniCPM-V: a large image is cut into slices, and every slice and the whole image have the same tokens."""

    side: int
    tokens_per_slice: int
    max_slices: int

    def tokens(self, width: int, height: int) -> int:
        return self._num_slices(width, height) * self.tokens_per_slice

    def num_pixels(self, width: int, height: int) -> int:
        # Slices have about this size, but may be longer in one direction.
        return self._num_slices(width, height) * self.side**2

    def _num_slices(self, width: int, height: int) -> int:
        num_slices = min(math.ceil(width * height / self.side**2), self.max_slices)
        if num_slices <= 1:
            return 1
        numbers = [n for n in (num_slices - 1, num_slices, num_slices + 1) if 1 < n <= self.max_slices]
        grids = [(columns, n // columns) for n in numbers for columns in range(1, n + 1) if n % columns == 0]
        log_ratio = math.log(width / height)
        columns, rows = min(grids, key=lambda grid: abs(log_ratio - math.log(grid[0] / grid[1])))
        return 1 + columns * rows


@dataclass(frozen=True)
class HdTokens(ImageTokenRule):
    """Phi-3.5-vision: the longer side is scaled to as many crops as the limit allows; rows end with another token."""

    side: int
    """Pixels of a crop's side."""
    max_crops: int
    tokens_per_side: int
    """Tokens along a crop's side."""

    def tokens(self, width: int, height: int) -> int:
        rows, columns = self._crops(width, height)
        return (rows * columns + 1) * self.tokens_per_side**2 + 1 + (rows + 1) * self.tokens_per_side

    def num_pixels(self, width: int, height: int) -> int:
        rows, columns = self._crops(width, height)
        return (rows * columns + 1) * self.side**2

    def _crops(self, width: int, height: int) -> tuple[int, int]:
        """The rows and columns of crops."""
        ratio = max(width, height) / min(width, height)
        long = 1
        while (long + 1) * math.ceil((long + 1) / ratio) <= self.max_crops:
            long += 1
        short = max(1, math.ceil(int(long * self.side / ratio) / self.side))
        return (short, long) if width >= height else (long, short)


def image_token_rule(
    settings: Mapping[str, Any], processor: Mapping[str, Any], arguments: Mapping[str, Any] | None = None
) -> ImageTokenRule | None:
    """The rule of a checkpoint; None if its family is not known, or it cuts images in a way that has no rule.

    Args:
        settings: The content of config.json, with `vision_config` complete (see `mpa_ray.models.omitted_settings`).
        processor: The settings of the image processor.
        arguments: Arguments with which the processor is called. They override its settings, and may be below
            `images_kwargs`.

    Raises:
        LookupError, TypeError, ValueError, AttributeError, ArithmeticError: a size is missing or impossible.
    """
    arguments = arguments or {}
    # Without this argument, the processor of InternVL cuts images into tiles, even if its settings say otherwise.
    stored = {name: value for name, value in processor.items() if name != "crop_to_patches"}
    processor = {**stored, **arguments, **(arguments.get("images_kwargs") or {})}
    rule = _rule_of_family(settings, processor)
    if rule is not None and not 1 <= (num_tokens := rule.tokens(640, 480)) <= _MAX_TOKENS:
        raise ValueError(f"an image of 640 x 480 pixels would have {num_tokens} tokens")
    return rule


def _rule_of_family(settings: Mapping[str, Any], processor: Mapping[str, Any]) -> ImageTokenRule | None:
    match settings.get("model_type"):
        case "qwen2_vl" | "qwen2_5_vl" | "qwen3_vl" | "qwen3_vl_moe":
            return _grid_tokens(settings["vision_config"], processor)
        case "internvl" | "internvl_chat":
            return _tile_tokens(settings, processor)
        case "idefics3" | "smolvlm":
            return _split_tokens(settings, processor)
        case "llava_next" | "llava_onevision":
            return _any_resolution_tokens(settings, processor)
        case "llava":
            has_class_token = settings.get("vision_feature_select_strategy") == "full"
            return FixedTokens(_patches(settings["vision_config"]) ** 2 + has_class_token, _input_side(settings))
        case "gemma3":
            num_tokens = settings.get("mm_tokens_per_image", 256)
            return None if processor.get("do_pan_and_scan") else FixedTokens(num_tokens, _input_side(settings))
        case "paligemma" | "tinyllava":
            return FixedTokens(_patches(settings["vision_config"]) ** 2, _input_side(settings))
        case "minicpmv":
            slices = settings.get("slice_config", {})
            max_slices = _tile_limit(processor.get("max_slice_nums", slices.get("max_slice_nums", 9)))
            return SliceTokens(settings.get("image_size", 448), settings.get("query_num", 64), max_slices)
        case "phi3_v":
            vision = settings["vision_config"]
            max_crops = _tile_limit(processor.get("num_crops", 4))
            return HdTokens(side_of(vision["image_size"]), max_crops, _patches(vision) // 2)
    return None


def _tile_limit(number: int) -> int:
    """A limit of the number of tiles. Raises ValueError for a number that no processor can have."""
    if not 1 <= number <= _MAX_TILES:
        raise ValueError(f"an image has up to {number} tiles")
    return number


def _patches(vision: Mapping[str, Any]) -> int:
    """Patches along the side of the vision tower's input."""
    return side_of(vision["image_size"]) // side_of(vision["patch_size"])


def _input_side(settings: Mapping[str, Any]) -> int:
    """Pixels of the side of the vision tower's input."""
    return side_of(settings["vision_config"]["image_size"])


def side_of(size: Any) -> int:
    """A side in pixels, which may be given as `448`, `[448, 448]` or `{"height": 448, "width": 448}`."""
    if isinstance(size, Mapping):
        return int(size.get("height") or size.get("shortest_edge") or size["longest_edge"])
    return int(size[0] if isinstance(size, list) else size)


def _grid_tokens(vision: Mapping[str, Any], processor: Mapping[str, Any]) -> GridTokens:
    patch, merge = processor.get("patch_size", vision["patch_size"]), vision.get("spatial_merge_size", 2)
    size = processor.get("size") or {}
    low = size.get("shortest_edge") or processor.get("min_pixels") or 56 * 56
    high = size.get("longest_edge") or processor.get("max_pixels") or 28 * 28 * 1280
    return GridTokens(side_of(patch) * merge, int(low), int(high))


def _tile_tokens(settings: Mapping[str, Any], processor: Mapping[str, Any]) -> ImageTokenRule:
    vision, ratio = settings["vision_config"], settings.get("downsample_ratio", 0.5)
    per_tile = settings.get("image_seq_length") or int((_patches(vision) * ratio) ** 2)
    if settings.get("model_type") == "internvl_chat":
        tiles = settings.get("min_dynamic_patch", 1), _tile_limit(settings.get("max_dynamic_patch", 12))
        side, has_thumbnail = settings.get("force_image_size") or vision["image_size"], settings.get("use_thumbnail")
        return TileTokens(side_of(side), per_tile, *tiles, has_thumbnail=bool(has_thumbnail))
    if not processor.get("crop_to_patches", True):
        return FixedTokens(per_tile, _input_side(settings))
    tiles = processor.get("min_patches", 1), _tile_limit(processor.get("max_patches", 12))
    return TileTokens(side_of(processor.get("size") or vision["image_size"]), per_tile, *tiles)


def _split_tokens(settings: Mapping[str, Any], processor: Mapping[str, Any]) -> ImageTokenRule:
    vision = settings["vision_config"]
    per_tile = (_patches(vision) // settings.get("scale_factor", 2)) ** 2
    tile_side = side_of(processor.get("max_image_size") or {"longest_edge": 364})
    if not processor.get("do_image_splitting", True):
        return FixedTokens(per_tile, tile_side)
    return SplitTokens(side_of(processor.get("size") or {"longest_edge": 4 * 364}), tile_side, per_tile)


def _any_resolution_tokens(settings: Mapping[str, Any], processor: Mapping[str, Any]) -> AnyResolutionTokens:
    vision = settings["vision_config"]
    resolutions = processor.get("image_grid_pinpoints") or settings["image_grid_pinpoints"]
    limit = str(settings.get("vision_aspect_ratio", "anyres_max_9")).removeprefix("anyres_max_")
    has_limit = settings.get("model_type") == "llava_onevision" and limit.isdecimal()
    return AnyResolutionTokens(
        resolutions=tuple((int(height), int(width)) for height, width in resolutions),
        side=side_of(processor.get("size") or vision["image_size"]),
        patches=_patches(vision),
        max_tiles=int(limit) if has_limit else None,
    )
