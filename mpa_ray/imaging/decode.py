r"""Decodes image files to RGB. A file that cannot be decoded yields an `ImageProblem`, never an exception.

The format of a file is recognised by its first bytes (`SIGNATURES`), never by its name. The first list shows which
files are refused, and the second list shows how the others are decoded.

    refused                                                                             reason
    no bytes                                                                            empty_file
    text, HTML, archives, and all files without a known signature                       not_an_image
    SVG, PDF, PSD, video, ... (not in `FORMATS`); camera RAW in TIFF; HEIC, unless      unsupported_format
        the extra `heic` is installed
    undamaged files of a variant that Pillow cannot decode (12-bit or lossless JPEG,    unsupported_format
        Apple's CgBI PNG, TIFF with an unknown compression)
    files whose header or pixels are cut off or damaged (decoders cannot tell a         truncated_image
        missing byte from a wrong one)
    more than `max_image_pixels` in the header, in a frame of a GIF or in a tile of     too_many_pixels
        a TIFF; more than 16 million pixels in a picture of an icon; all of these are
        checked before decoding
    aspect ratio of 200:1 or more, in the file or after scaling                         extreme_aspect_ratio

    decoded, always to RGB                                                              result
    bytes after the end of the image; a PNG without its last chunk                      the image
    PNG texts and profiles, or EXIF data, that are damaged or unpack to megabytes       the image without them
    animation, several pages, MPO                                                       the first frame
    icon                                                                                its largest picture
    EXIF orientation 2 to 8                                                             rotated or mirrored upright
    EXIF orientation missing or any other value                                         unchanged
    CMYK, YCCK, Lab                                                                     RGB without colour profiles;
                                                                                        CMYK in JPEG is read as inverted
    transparency by alpha, palette or one colour                                        on a white background
    BMP whose alpha is 0 everywhere                                                     opaque
    1 bit, grey, palette                                                                RGB
    12 or 16 bits                                                                       scaled from the format's range
                                                                                        to 8 bits
    32-bit integers and floats (no header states their range)                           0 becomes black; the smallest of
                                                                                        1, 255 and 65535 that no value
                                                                                        exceeds becomes white
    32-bit integers and floats with a value below 0 or above 65535                      the lowest value becomes black,
                                                                                        the highest white
    smaller than `min_pixels`, down to 1 x 1                                            scaled up
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import math
import re
import struct
import threading
import warnings
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from PIL.TiffImagePlugin import TiffImageFile

from mpa_ray.config import MAX_IMAGE_PIXELS
from mpa_ray.imaging.formats import HEIC_EXTRA, reads_heic
from mpa_ray.imaging.variants import unread_variant
from mpa_ray.records import Reason

# Set once for the process: warnings.catch_warnings in each call would race between threads.
warnings.filterwarnings("ignore", module=r"PIL\.")

FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "DIB", "TIFF", "ICO", "PPM", "JPEG2000")
"""Pillow's names for the decoded formats. For some others, Pillow would run Ghostscript, a separate program."""
MAX_ASPECT_RATIO = 200
"""Images with this aspect ratio or a larger one are refused, because Qwen2-VL's image processor raises an error for
ratios above this one."""
_LARGE_PIXELS = 16_000_000
"""Images with more pixels are decoded one at a time."""
_one_large_image = threading.BoundedSemaphore(1)
"""Held while a large image is decoded, because its conversion to RGB may need a gigabyte of memory."""
_SMALL_BYTES = 4 * 2**10
"""Files up to this size are prepared in the thread of the event loop, which is faster."""

_GAP = rb"(?:\s|#[^\r\n]*+[\r\n])++"
SIGNATURES = {
    name: re.compile(pattern, re.DOTALL)
    for name, pattern in {
        "JPEG": rb"\xff\xd8\xff",
        "PNG": rb"\x89PNG\r\n\x1a\n",
        "WEBP": rb"RIFF.{4}WEBP",
        "GIF": rb"GIF8[79]a",
        "BMP": rb"BM.{12}.\x00\x00\x00",
        "DIB": rb"(?:\x0c\x00{3}.{4}|[\x28\x34\x38\x40\x6c\x7c]\x00{3}.{8})\x01\x00[\x01\x04\x08\x10\x18\x20]\x00",
        "CR2": rb"II\*\x00.{4}CR\x02",
        "TIFF": rb"II[*+]\x00|MM\x00[*+]|MM\*\x00|II\x00\*",
        "ICO": rb"\x00\x00\x01\x00(?!\x00\x00)..",
        "PPM": rb"P[1-6f]" + _GAP + rb"\d++" + _GAP + rb"\d++\s",
        "JPEG2000": rb"\xff\x4f\xff\x51|\x00\x00\x00\x0cjP  \r\n\x87\n",
        # Brands are four bytes each; a file of the HEIF family may name its codec in any of them.
        "AVIF": rb"\x00\x00..ftyp(?:.{4}){0,16}?avi[fs]",
        "HEIC": rb"\x00\x00..ftyp(?:.{4}){0,16}?(?:hei[cxms]|hev[cxms]|mif1|msf1)",
        "CR3": rb"\x00\x00..ftypcrx ",
        "MP4": rb"\x00\x00..ftyp.{4}",
        "QuickTime": rb"\x00.{3}(?:moov|mdat|wide)",
        "Matroska": rb"\x1a\x45\xdf\xa3",
        "AVI": rb"RIFF.{4}AVI ",
        "MPEG": rb"\x00\x00\x01[\xb3\xba]",
        "FLV": rb"FLV\x01",
        "JPEG XL": rb"\xff\x0a|\x00\x00\x00\x0cJXL \r\n\x87\n",
        "JPEG XR": rb"II\xbc",
        # The quantifiers are possessive and the group is atomic, so that a hostile prologue causes no backtracking.
        "SVG": rb"(?:\xef\xbb\xbf)?\s*+(?:(?><\?.*?\?>|<!--.*?-->|<!DOCTYPE\s+svg[^>\[]*+(?:\[[^\]]*+\])?\s*+>)\s*+)*+"
        rb"<(?:\w++:)?svg[\s/>]",
        "PDF": rb"\s*+%PDF-",
        "PostScript": rb"%!PS|\xc5\xd0\xd3\xc6",
        "PSD": rb"8BPS\x00[\x01\x02]",
        "XCF": rb"gimp xcf",
        "WMF": rb"\xd7\xcd\xc6\x9a|\x01\x00\x09\x00\x00[\x01\x03]",
        "EMF": rb"\x01\x00\x00\x00.{36} EMF",
        "RAF": rb"FUJIFILMCCD-RAW",
        "ORF": rb"IIR[OS]\x08\x00|MMOR\x00\x00",
        "RW2": rb"IIU\x00",
        "DDS": rb"DDS \x7c\x00\x00\x00",
        "PCX": rb"\x0a[\x00-\x05]\x01[\x01\x02\x04\x08]",
        "CUR": rb"\x00\x00\x02\x00(?!\x00\x00)..",
        "TGA": rb".(?:\x01[\x01\x09].{5}|\x00[\x02\x03\x0a\x0b]\x00{5}).{8}[\x08\x0f\x10\x18\x20][\x00-\x3f]",
        "OpenEXR": rb"\x76\x2f\x31\x01",
        "Radiance HDR": rb"#\?(?:RADIANCE|RGBE)",
        "QOI": rb"qoif\x00",
        "ICNS": rb"icns\x00",
        "FITS": rb"SIMPLE  =",
        "DICOM": rb".{128}DICM",
        "DjVu": rb"AT&TFORM",
        "PAM": rb"P7\n(?:#|WIDTH|HEIGHT|DEPTH)",
        "PFM in colour": rb"PF\s+\d+\s+\d+\s",
    }.items()
}
"""Patterns of first bytes, by format. The first pattern that matches a file decides the file's format."""
# TIFF tags.
_NEW_SUBFILE_TYPE = 254
_BITS_PER_SAMPLE = 258
_PHOTOMETRIC = 262
_TILE_WIDTH = 322
_TILE_LENGTH = 323
_SUB_IFDS = 330
_SAMPLE_FORMAT = 339
_DNG_VERSION = 50706

_WHITE_IS_ZERO = 0
"""The value of the tag `_PHOTOMETRIC` in a file in which 0 is white."""


@dataclass(frozen=True)
class PreparedImage:
    """An image that is ready for a model."""

    image: Image.Image
    """RGB, within the model's pixel limits."""
    key: str
    """Identifies the image in an engine's caches. Equal files with equal pixel limits have the same key."""


@dataclass(frozen=True)
class ImageProblem:
    """The reason why a file could not be read or decoded."""

    reason: Reason
    detail: str


def prepare(
    content: bytes, min_pixels: int, max_pixels: int, max_image_pixels: int = MAX_IMAGE_PIXELS
) -> PreparedImage | ImageProblem:
    """Decode a file and scale its image to the pixel limits. Returns an `ImageProblem` if the file cannot be used."""
    decoded = decode(content, max_image_pixels)
    if isinstance(decoded, ImageProblem):
        return decoded
    fitted = fit(decoded, min_pixels, max_pixels)
    # Rounding to whole pixels may raise the aspect ratio.
    problem = _refused(fitted.size, max_image_pixels)
    if problem:
        return problem
    digest = hashlib.sha256(content).hexdigest()
    return PreparedImage(fitted, f"{digest}-{min_pixels}-{max_pixels}")


async def prepare_in_thread(
    content: bytes, min_pixels: int, max_pixels: int, max_image_pixels: int = MAX_IMAGE_PIXELS
) -> PreparedImage | ImageProblem:
    """Call `prepare` in a thread, so that the event loop does not wait; for a small file, call it directly."""
    if len(content) <= _SMALL_BYTES:
        return prepare(content, min_pixels, max_pixels, max_image_pixels)
    return await asyncio.to_thread(prepare, content, min_pixels, max_pixels, max_image_pixels)


def decode(content: bytes, max_image_pixels: int = MAX_IMAGE_PIXELS) -> Image.Image | ImageProblem:
    """Decode a file to RGB, by this module's rules. Returns an `ImageProblem` if the file is refused."""
    if not content:
        return ImageProblem(Reason.EMPTY_FILE, "0 bytes")
    format_name = recognise_format(content)
    if format_name is None:
        return ImageProblem(Reason.NOT_AN_IMAGE, "no signature of an image format")
    if format_name == "HEIC" and not reads_heic():
        return ImageProblem(Reason.UNSUPPORTED_FORMAT, f"HEIC (needs {HEIC_EXTRA})")
    if format_name not in (*FORMATS, "HEIC"):
        return ImageProblem(Reason.UNSUPPORTED_FORMAT, format_name)
    _raise_limit_of_pillow(max_image_pixels)
    try:
        return _decode_as(format_name, content, max_image_pixels)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        return ImageProblem(Reason.TOO_MANY_PIXELS, f"{format_name}: {error}")
    except MemoryError:
        return ImageProblem(Reason.TOO_MANY_PIXELS, f"{format_name}: out of memory")
    except Exception as error:  # noqa: BLE001
        # Pillow's plugins raise errors of any class on damaged data.
        bare = _without_ancillary_chunks(content) if format_name == "PNG" else content
        if len(bare) < len(content):
            return decode(bare, max_image_pixels)
        variant = unread_variant(format_name, content, error)
        if variant is not None:
            return ImageProblem(Reason.UNSUPPORTED_FORMAT, variant)
        return ImageProblem(Reason.TRUNCATED_IMAGE, f"{format_name}: {type(error).__name__}: {error}")


def recognise_format(content: bytes) -> str | None:
    """Return the key of the first entry of `SIGNATURES` that a file's first bytes match; None if they match none."""
    return next((name for name, signature in SIGNATURES.items() if signature.match(content)), None)


def _raise_limit_of_pillow(max_image_pixels: int) -> None:
    """Raise Pillow's own limit to `max_image_pixels`, because Pillow refuses images with more than twice its limit."""
    if Image.MAX_IMAGE_PIXELS is not None and max_image_pixels > Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = max_image_pixels


def _opened(format_name: str, content: bytes) -> Image.Image | ImageProblem:
    """Open a file with Pillow's plugin for the format. Image.open would not say why the plugin refused the file."""
    if format_name == "HEIC":
        from pi_heif import HeifImageFile

        image: Image.Image = HeifImageFile(io.BytesIO(content))
        return image
    Image.init()
    if format_name not in Image.OPEN:
        return ImageProblem(Reason.UNSUPPORTED_FORMAT, f"{format_name} is not part of this build of Pillow")
    return Image.OPEN[format_name][0](io.BytesIO(content), "")


def _decode_as(format_name: str, content: bytes, max_image_pixels: int) -> Image.Image | ImageProblem:
    if format_name == "ICO":
        # Check the sizes first, because Pillow decodes an icon as soon as it opens it.
        for width, height in _icon_sizes(content):
            if width * height > _LARGE_PIXELS:
                return ImageProblem(Reason.TOO_MANY_PIXELS, f"{width} x {height} in an icon")
    if format_name == "JPEG2000" and b"\xff\xd9" not in content:
        # If a file is cut off between two tiles, Pillow raises no error and leaves the missing tiles black.
        return ImageProblem(Reason.TRUNCATED_IMAGE, f"{format_name}: no end of the codestream")
    image = _opened(format_name, content)
    if isinstance(image, ImageProblem):
        return image
    problem = _refused(image.size, max_image_pixels) or _refused_tiff(image, max_image_pixels)
    if problem:
        return problem
    if format_name == "PNG":
        _scale_transparent_colour(image, bits=content[24])
    large = image.width * image.height > _LARGE_PIXELS
    with _one_large_image if large else nullcontext():
        image.load()
        with suppress(Exception):
            # Damaged EXIF data do not affect the pixels.
            ImageOps.exif_transpose(image, in_place=True)
        return _to_rgb(image)


def _refused(size: tuple[int, int], max_image_pixels: int) -> ImageProblem | None:
    width, height = size
    if width * height > max_image_pixels:
        return ImageProblem(Reason.TOO_MANY_PIXELS, f"{width} x {height}")
    if max(size) >= MAX_ASPECT_RATIO * min(size):
        return ImageProblem(Reason.EXTREME_ASPECT_RATIO, f"{width} x {height}")
    return None


def _refused_tiff(image: Image.Image, max_image_pixels: int) -> ImageProblem | None:
    if not isinstance(image, TiffImageFile):
        return None
    tags = image.tag_v2
    width, height = tags.get(_TILE_WIDTH, 0), tags.get(_TILE_LENGTH, 0)
    if width * height > max_image_pixels:
        # libtiff unpacks whole tiles, even for a small image.
        return ImageProblem(Reason.TOO_MANY_PIXELS, f"a tile of {width} x {height}")
    if _DNG_VERSION in tags or (_SUB_IFDS in tags and tags.get(_NEW_SUBFILE_TYPE, 0) & 1):
        # The first page is only a preview.
        return ImageProblem(Reason.UNSUPPORTED_FORMAT, "camera RAW in TIFF")
    return None


def _icon_sizes(content: bytes) -> Iterator[tuple[int, int]]:
    """Yield the width and height of each picture in an icon, from the picture's own header. The sizes in the icon's
    directory may be wrong."""
    (count,) = struct.unpack_from("<H", content, 4)
    for entry in range(count):
        with suppress(struct.error):
            (start,) = struct.unpack_from("<I", content, 6 + 16 * entry + 12)
            yield _picture_size(content, start)


def _picture_size(icon: bytes, start: int) -> tuple[int, int]:
    if SIGNATURES["PNG"].match(icon, start):
        width, height = struct.unpack_from(">II", icon, start + 16)
        return width, height
    (header_bytes,) = struct.unpack_from("<I", icon, start)
    width, height = struct.unpack_from("<HH" if header_bytes == 12 else "<Ii", icon, start + 4)
    # A bitmap's header states the height of the picture and its mask together.
    return width, abs(height) // 2


def _without_ancillary_chunks(png: bytes) -> bytes:
    """Remove the chunks that do not affect the pixels: Pillow refuses a PNG if one of them is damaged or too large."""
    kept, start = [png[:8]], 8
    while start + 8 <= len(png):
        length, kind = struct.unpack_from(">I4s", png, start)
        end = start + 12 + length
        is_critical = not kind[0] & 0x20
        if is_critical or kind in (b"tRNS", b"eXIf"):
            kept.append(png[start:end])
        start = end
    return b"".join(kept) + png[start:]


def _scale_transparent_colour(png: Image.Image, bits: int) -> None:
    """Scale the transparent colour to 8 bits. Pillow scales the pixels but not this colour."""
    colour = png.info.get("transparency")
    if png.mode == "L" and bits < 8 and colour is not None:
        png.info["transparency"] = colour * 255 // (2**bits - 1)
    if png.mode == "RGB" and bits == 16 and colour is not None:
        png.info["transparency"] = tuple(value >> 8 for value in colour)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        return _eight_bit_grey(image).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    if image.mode == "La":
        image = image.convert("LA")
    rgba = image if image.mode == "RGBA" else image.convert("RGBA")
    if image.format == "BMP" and rgba.getchannel("A").getextrema() == (0, 0):
        # Some writers leave the alpha of an opaque image at 0.
        return rgba.convert("RGB")
    ground = Image.new("RGB", rgba.size, "white")
    ground.paste(rgba, mask=rgba)
    return ground


def _eight_bit_grey(image: Image.Image) -> Image.Image:
    values = np.array(image, np.float32)
    transparent = values == image.info.get("transparency")
    black, white = _black_and_white(image, values)
    with np.errstate(over="ignore", invalid="ignore"):
        values -= black
        values *= 255 / ((white - black) or 1)
    np.nan_to_num(values, copy=False)
    np.clip(values, 0, 255, out=values)
    values[transparent] = 255
    return Image.fromarray(np.rint(values, out=values).astype(np.uint8))


def _black_and_white(image: Image.Image, values: NDArray[np.float32]) -> tuple[float, float]:
    """Return the value that becomes black and the value that becomes white."""
    tags = image.tag_v2 if isinstance(image, TiffImageFile) else {}
    if image.mode == "F" or (tags and image.mode == "I"):
        if image.mode == "I" and tags.get(_SAMPLE_FORMAT, (1,))[0] == 1:
            # The file's values are unsigned; Pillow reads them as signed.
            values[values < 0] += 2.0**32
        black, white = _range_of(values)
    else:
        bits = tags.get(_BITS_PER_SAMPLE, (16,))[0]
        black, white = 0.0, 2.0**bits - 1
    # Pillow applies the photometric interpretation only to images of at most 8 bits.
    return (white, black) if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO else (black, white)


def _range_of(values: NDArray[np.float32]) -> tuple[float, float]:
    finite = values[np.isfinite(values)]
    lowest, highest = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    white = next((white for white in (1.0, 255.0, 65535.0) if lowest >= 0 and highest <= white), None)
    return (0.0, white) if white else (lowest, highest)


def fit(image: Image.Image, min_pixels: int, max_pixels: int) -> Image.Image:
    """Scale an image so that its area is within the limits; keep its aspect ratio. An image that fits is unchanged.

    Qwen2-VL's image processor also limits the area, and then rounds the sides to its grid of patches.
    """
    area = image.width * image.height
    if min_pixels <= area <= max_pixels:
        return image
    scale = math.sqrt((max_pixels if area > max_pixels else min_pixels) / area)
    round_ = math.floor if scale < 1 else math.ceil
    size = max(1, round_(image.width * scale)), max(1, round_(image.height * scale))
    return image.resize(size, Image.Resampling.BICUBIC)
