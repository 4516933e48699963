"""Bytes to pixels, such that no file can end a run: what cannot be shown to a model has a reason instead."""

from __future__ import annotations

import hashlib
import io
import math
import threading
import warnings
from contextlib import nullcontext
from dataclasses import dataclass

from PIL import Image, ImageOps, UnidentifiedImageError

from mpa_ray.records import Reason

FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "DIB", "TIFF", "ICO", "PPM", "JPEG2000")
"""What is decoded, whatever a file is called. Pillow knows more; some of it runs other programs (EPS: Ghostscript)."""
MAX_PIXELS = 89_478_485
"""Pixels above which a file is taken for a decompression bomb; where Pillow begins to warn."""
MAX_ASPECT_RATIO = 200
"""Qwen2-VL's image processor refuses longer images."""
_LARGE_PIXELS = 16_000_000
_one_large_image = threading.BoundedSemaphore(1)
"""Large images are decoded one after another: each can take a gigabyte on its way to RGB."""


@dataclass(frozen=True)
class PreparedImage:
    """Pixels as a model gets them."""

    image: Image.Image
    """RGB, within the model's pixel limits."""
    key: str
    """Equal for equal files under equal pixel limits: names the image in an engine's caches."""


@dataclass(frozen=True)
class ImageProblem:
    """Why there are no pixels."""

    reason: Reason
    detail: str


def prepare(content: bytes, min_pixels: int, max_pixels: int) -> PreparedImage | ImageProblem:
    """A file's bytes as a model's input, or why it has none."""
    decoded = decode(content)
    if isinstance(decoded, ImageProblem):
        return decoded
    digest = hashlib.sha256(content).hexdigest()
    return PreparedImage(fit(decoded, min_pixels, max_pixels), f"{digest}-{min_pixels}-{max_pixels}")


def decode(content: bytes) -> Image.Image | ImageProblem:
    """An RGB image: first frame, EXIF rotation applied, transparency laid on white, 16 bits scaled to 8."""
    if not content:
        return ImageProblem(Reason.EMPTY_FILE, "0 bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(content), formats=FORMATS)
            problem = _refused(image.size)
            if problem:
                return problem
            large = image.width * image.height > _LARGE_PIXELS
            with _one_large_image if large else nullcontext():
                image.load()
                return _to_rgb(_upright(image))
    except UnidentifiedImageError:
        return ImageProblem(Reason.NOT_AN_IMAGE, "no image format that is read here")
    except Image.DecompressionBombError as error:
        return ImageProblem(Reason.TOO_MANY_PIXELS, str(error))
    except Exception as error:  # noqa: BLE001
        # Pillow's plugins report damaged data with whatever their parsing met, of any class.
        return ImageProblem(Reason.TRUNCATED_IMAGE, f"{type(error).__name__}: {error}")


def _upright(image: Image.Image) -> Image.Image:
    """Rotated as its EXIF data says; as it is where they are damaged, since the pixels are not."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # noqa: BLE001
        return image


def _refused(size: tuple[int, int]) -> ImageProblem | None:
    width, height = size
    if width * height > MAX_PIXELS:
        return ImageProblem(Reason.TOO_MANY_PIXELS, f"{width} x {height}")
    if max(size) >= MAX_ASPECT_RATIO * min(size):
        return ImageProblem(Reason.EXTREME_ASPECT_RATIO, f"{width} x {height}")
    return None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        image = image.convert("I").point(lambda v: v * (1 / 256)).convert("L")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        ground = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(ground, rgba).convert("RGB")
    return image.convert("RGB")


def fit(image: Image.Image, min_pixels: int, max_pixels: int) -> Image.Image:
    """The image scaled into the pixel limits, its aspect ratio kept; as it is where it already fits.

    The limits are on the area, as in Qwen2-VL's image processor, which then rounds the sides to its patch grid.
    """
    area = image.width * image.height
    if min_pixels <= area <= max_pixels:
        return image
    scale = math.sqrt((max_pixels if area > max_pixels else min_pixels) / area)
    round_ = math.floor if scale < 1 else math.ceil
    size = max(1, round_(image.width * scale)), max(1, round_(image.height * scale))
    return image.resize(size, Image.Resampling.BICUBIC)
