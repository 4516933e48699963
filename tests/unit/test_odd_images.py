"""The decode policy, file by file: each odd or malformed file has the outcome that `imaging/decode.py` states."""

from __future__ import annotations

import asyncio
import io
import json
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageFile, features

from mpa_ray.config import AnnotateConfig, AnswerConfig, ScriptedEngineConfig
from mpa_ray.engine.scripted import ScriptedEngine
from mpa_ray.imaging.decode import ImageProblem, decode
from mpa_ray.imaging.formats import reads_heic
from mpa_ray.records import ImageRef, Reason
from mpa_ray.stages.annotate import Annotate
from mpa_ray.stages.image_work import ImageWork
from mpa_ray.tasks.library import TASKS

# Pillow warns about many of these files.
pytestmark = pytest.mark.filterwarnings(r"ignore:::PIL\.")

COLOURS = {
    **{"r": (220, 30, 30), "g": (30, 180, 60), "b": (40, 60, 200), "y": (240, 220, 40)},
    **{"k": (0, 0, 0), "h": (128, 128, 128), "w": (255, 255, 255)},
}
SIZE, TALL = (64, 32), (32, 64)


@dataclass(frozen=True)
class Shown:
    """The file is decoded, with these colours in its corners, from left to right and from top to bottom."""

    size: tuple[int, int] = SIZE
    corners: str = "rgby"
    tolerance: int = 8


@dataclass(frozen=True)
class Refused:
    reason: Reason
    named: str = ""
    """Text in the problem's detail."""


EMPTY = Refused(Reason.EMPTY_FILE)
NO_IMAGE = Refused(Reason.NOT_AN_IMAGE)
CUT = Refused(Reason.TRUNCATED_IMAGE)
BOMB = Refused(Reason.TOO_MANY_PIXELS)
LONG = Refused(Reason.EXTREME_ASPECT_RATIO)


def other(name: str) -> Refused:
    return Refused(Reason.UNSUPPORTED_FORMAT, name)


HEIC = CUT if reads_heic() else other("HEIC (needs mpa-ray[heic])")
"""The outcome of a file that is only a header."""


def quarters(mode: str = "RGB") -> Image.Image:
    image = Image.new("RGB", SIZE)
    for index, corner in enumerate("rgby"):
        left, top = 32 * (index % 2), 16 * (index // 2)
        image.paste(COLOURS[corner], (left, top, left + 32, top + 16))
    # `convert` would use the nearest of 216 fixed colours.
    return image.quantize() if mode == "P" else image.convert(mode)


def encoded(image: Image.Image, format_name: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_name, **options)
    return buffer.getvalue()


def of(format_name: str, **options: object) -> bytes:
    return encoded(quarters(), format_name, **options)


def plain(mode: str, colour: object, format_name: str = "PNG", size: tuple[int, int] = (8, 8)) -> bytes:
    return encoded(Image.new(mode, size, colour), format_name)


def animated(format_name: str, **options: object) -> bytes:
    return of(format_name, save_all=True, append_images=[Image.new("RGB", SIZE, "black")], **options)


def oriented(orientation: int, format_name: str = "JPEG", **options: object) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return of(format_name, exif=exif, **options)


def patched(content: bytes, at: int, new: bytes) -> bytes:
    return content[:at] + new + content[at + len(new) :]


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(size: tuple[int, int], bits: int, kind: int, row: bytes, *before: bytes, after: bytes = b"") -> bytes:
    """A PNG whose rows are all equal; kinds: 0 grey, 2 colour, 3 palette."""
    packer = zlib.compressobj()
    packed = b"".join(packer.compress(b"\0" + row) for _ in range(size[1])) + packer.flush()
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, bits, kind, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(before) + chunk(b"IDAT", packed) + after + chunk(b"IEND", b"")


def black_png(*before: bytes, after: bytes = b"") -> bytes:
    return png((4, 4), 8, 0, b"\0" * 4, *before, after=after)


def png_bomb() -> bytes:
    return png((20_000, 20_000), 1, 0, b"\0" * 2_500)


def packed_bomb() -> bytes:
    return zlib.compress(b"\0" * 30_000_000)


def damaged_chunk(kind: bytes, data: bytes) -> bytes:
    return chunk(kind, data)[:-4] + b"\0\0\0\0"


def bgr(colour: str) -> bytes:
    return bytes(reversed(COLOURS[colour]))


def bmp(width: int, height: int, bits: int, pixels: bytes, masks: tuple[int, ...] = ()) -> bytes:
    """A BMP; with masks it has a header of version 4, whose fourth mask is for alpha."""
    length = 108 if masks else 40
    fields = struct.pack("<IiiHHIIiiII", length, width, height, 1, bits, 3 if masks else 0, 0, 0, 0, 0, 0)
    header = (fields + struct.pack(f"<{len(masks)}I", *masks)).ljust(length, b"\0")
    return b"BM" + struct.pack("<IHHI", 14 + length + len(pixels), 0, 0, 14 + length) + header + pixels


def tiff(
    width: int,
    height: int,
    bits: tuple[int, ...],
    photometric: int,
    pixels: bytes,
    *extra: tuple[int, int, tuple[int, ...]],
    tile: int = 0,
    compression: int = 1,
) -> bytes:
    """A TIFF with one strip or one tile; extra fields are (tag, type, values), types: 1 byte, 3 short, 4 long."""
    place = (
        [(322, 4, (tile,)), (323, 4, (tile,)), (324, 4, (0,)), (325, 4, (len(pixels),))]
        if tile
        else [(273, 4, (0,)), (278, 4, (height,)), (279, 4, (len(pixels),))]
    )
    fields = sorted(
        [
            (256, 4, (width,)),
            (257, 4, (height,)),
            (258, 3, bits),
            (259, 3, (compression,)),
            (262, 3, (photometric,)),
            (277, 3, (len(bits),)),
            *place,
            *extra,
        ]
    )
    start = 8 + 2 + 12 * len(fields) + 4
    packed = {tag: struct.pack(f"<{len(values)}{' B HI'[kind]}", *values) for tag, kind, values in fields}
    end = start + sum(len(data) for data in packed.values() if len(data) > 4)
    directory, aside = b"", b""
    for tag, kind, values in fields:
        data = struct.pack("<I", end) if tag in (273, 324) else packed[tag]
        if len(data) > 4:
            data, aside = struct.pack("<I", start + len(aside)), aside + data
        directory += struct.pack("<HHI", tag, kind, len(values)) + data.ljust(4, b"\0")
    return b"II*\0" + struct.pack("<IH", 8, len(fields)) + directory + bytes(4) + aside + pixels


def numbers(array: np.ndarray) -> bytes:
    """A TIFF of 32-bit numbers."""
    return encoded(Image.fromarray(array.reshape(2, 2)), "TIFF")


def icon(picture: bytes) -> bytes:
    """An icon whose directory says 16 x 16 for any picture."""
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(picture), 22) + picture


def jpeg_with(*segments: tuple[int, bytes], **options: object) -> bytes:
    whole = of("JPEG", **options)
    inserted = b"".join(struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data for marker, data in segments)
    return whole[:2] + inserted + whole[2:]


def jpeg_frame(precision: int | None = None, size: tuple[int, int] | None = None) -> bytes:
    """A JPEG whose header disagrees with its data."""
    whole = of("JPEG")
    start = whole.index(b"\xff\xc0") + 4
    whole = patched(whole, start, bytes([precision])) if precision else whole
    return patched(whole, start + 1, struct.pack(">HH", size[1], size[0])) if size is not None else whole


def jpeg_with_thumbnails() -> bytes:
    thumbnail = plain("RGB", "black", "JPEG")
    directory = struct.pack("<HHHIIHHIII", 2, 0x201, 4, 1, 44, 0x202, 4, 1, len(thumbnail), 0)
    exif = b"Exif\0\0II*\0" + struct.pack("<IHI", 8, 0, 14) + directory + thumbnail
    jfif = b"JFIF\0\1\2\0\0\1\0\1\2\1" + bytes(6)
    return jpeg_with((0xE0, jfif), (0xE1, exif))


def ycck() -> bytes:
    """A red image: no cyan, full magenta and yellow, converted to luma and chroma as if they were RGB."""
    whole = plain("CMYK", (255 - 179, 255 - 171, 255 - 0, 0), "JPEG")
    return patched(whole, whole.index(b"Adobe") + 11, b"\2")


def without_adobe_segment(jpeg: bytes) -> bytes:
    start = jpeg.index(b"\xff\xee")
    return jpeg[:start] + jpeg[start + 2 + struct.unpack_from(">H", jpeg, start + 2)[0] :]


def damaged_exif() -> bytes:
    whole = oriented(1)
    start = whole.index(b"Exif") + 14
    return patched(whole, start, b"\xff" * 12)


def palette_png(alphas: bytes) -> bytes:
    colours = bytes(value for corner in "rgby" for value in COLOURS[corner])
    return png((4, 4), 8, 3, bytes([0, 0, 1, 1]), chunk(b"PLTE", colours), chunk(b"tRNS", alphas))


def lab() -> bytes:
    to_lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    converted = ImageCms.profileToProfile(quarters(), *to_lab, outputMode="LAB")
    assert converted is not None
    return encoded(converted, "TIFF")


def jp2(image_header: bytes = b"", codestream_size: tuple[int, int] | None = None) -> bytes:
    whole = of("JPEG2000")
    if image_header:
        whole = patched(whole, whole.index(b"ihdr") + 4, image_header)
    if codestream_size:
        start = whole.index(b"\xff\x4f\xff\x51") + 8
        whole = patched(
            patched(whole, start, struct.pack(">II", *codestream_size)),
            start + 16,
            struct.pack(">II", *codestream_size),
        )
    return whole


def jp2_without_tiles() -> bytes:
    whole = of("JPEG2000")
    return whole[: whole.index(b"\xff\x90")]


def gif_frame(size: tuple[int, int]) -> bytes:
    whole = of("GIF")
    return patched(whole, whole.index(b"," + struct.pack("<4H", 0, 0, *SIZE)) + 5, struct.pack("<2H", *size))


def avif_claiming(size: tuple[int, int]) -> bytes:
    whole = of("AVIF")
    return patched(whole, whole.index(b"ispe") + 8, struct.pack(">II", *size))


def isobmff(*brands: bytes) -> bytes:
    names = brands[0] + bytes(4) + b"".join(brands[1:])
    return struct.pack(">I", 8 + len(names)) + b"ftyp" + names + struct.pack(">I4s", 1024, b"meta") + bytes(1016)


def part(format_name: str, share: float, **options: object) -> Callable[[], bytes]:
    def cut() -> bytes:
        whole = of(format_name, **options)
        return whole[: int(len(whole) * share)]

    return cut


SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><circle r="4"/></svg>'
DOCTYPE = b'<!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.1//EN" "svg11.dtd" [\n<!ENTITY ns "http://www.w3.org/2000/svg">\n]>'
ROW16 = struct.pack(">4H", 0, 0, 32768, 65535)
GREEN = COLOURS["g"]
ARGB = (0xFF0000, 0xFF00, 0xFF, 0xFF000000)

Case = tuple[Callable[[], bytes], Shown | Refused]

NOT_IMAGES: dict[str, Case] = {
    "empty": (lambda: b"", EMPTY),
    "one byte": (lambda: b"\xff", NO_IMAGE),
    "zeros": (lambda: bytes(4096), NO_IMAGE),
    "noise": (lambda: np.random.default_rng(0).bytes(4096), NO_IMAGE),
    "text": (lambda: b"hello, this is no image", NO_IMAGE),
    "text that begins like a bitmap": (lambda: b"BMW builds cars in Munich and has done so for long.", NO_IMAGE),
    "text that begins like a graymap": (lambda: b"P2 visa forms are to be had at the counter.", NO_IMAGE),
    "text that begins like a film": (lambda: b"The wide road goes on for ever.", NO_IMAGE),
    "HTML error page": (lambda: b"<!DOCTYPE html><html><body><h1>404</h1>" + SVG + b"</body></html>", NO_IMAGE),
    "XML of another kind": (lambda: b'<?xml version="1.0"?><rss><channel/></rss>', NO_IMAGE),
    "comments without end": (lambda: b"<!---->" * 50_000, NO_IMAGE),
    "JSON": (lambda: json.dumps({"error": "not found"}).encode(), NO_IMAGE),
    "zip": (lambda: b"PK\x03\x04\x14\0\0\0\x08\0" + bytes(200), NO_IMAGE),
    "gzip": (lambda: b"\x1f\x8b\x08\0" + bytes(200), NO_IMAGE),
}


def jpeg_of_frame(marker: int) -> bytes:
    """A JPEG that declares another type of frame."""
    whole = of("JPEG")
    start = whole.index(b"\xff\xc0")
    return whole[: start + 1] + bytes([marker]) + whole[start + 2 :]


def apple_png() -> bytes:
    """A PNG as Xcode writes it for iPhones: another first chunk, and pixels without zlib's header."""
    packed = zlib.compressobj(wbits=-15)
    pixels = packed.compress((b"\0" + bytes(4 * 64)) * 32) + packed.flush()
    header = struct.pack(">IIBBBBB", 64, 32, 8, 6, 0, 0, 0)
    chunks = [(b"CgBI", b"P\0 \2"), (b"IHDR", header), (b"IDAT", pixels), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, content) for kind, content in chunks)


def tiff_compressed(compression: int) -> bytes:
    """A TIFF that declares another compression."""
    whole = of("TIFF")
    start = whole.index(struct.pack("<HHI", 259, 3, 1)) + 8
    return whole[:start] + struct.pack("<H", compression) + whole[start + 2 :]


OTHER_FORMATS: dict[str, Case] = {
    "SVG": (lambda: SVG, other("SVG")),
    "SVG declared": (lambda: b'<?xml version="1.0" encoding="UTF-8"?>\n' + SVG, other("SVG")),
    "SVG with byte order mark": (lambda: b"\xef\xbb\xbf" + SVG, other("SVG")),
    "SVG behind a prologue": (lambda: b"\n<?xml version='1.0'?><!-- a --><!-- b -->" + DOCTYPE + SVG, other("SVG")),
    "SVG with prefix": (lambda: b"<svg:svg xmlns:svg='http://www.w3.org/2000/svg'/>", other("SVG")),
    "HEIC": (lambda: isobmff(b"heic", b"mif1", b"heic"), HEIC),
    "HEIC by a compatible brand": (lambda: isobmff(b"mif1", b"mif1", b"heix"), HEIC),
    "lossless JPEG": (lambda: jpeg_of_frame(0xC3), other("lossless JPEG")),
    "hierarchical JPEG": (lambda: jpeg_of_frame(0xC5), other("hierarchical JPEG")),
    "lossless JPEG with arithmetic coding": (lambda: jpeg_of_frame(0xCB), other("lossless JPEG")),
    "JPEG-LS": (lambda: jpeg_of_frame(0xF7), other("JPEG-LS")),
    "JPEG-LS without tables": (
        lambda: b"\xff\xd8\xff\xf7\0\x0b\x08\0\x10\0\x10\1\1\x11\0" + bytes(40),
        other("JPEG-LS"),
    ),
    "CgBI": (lambda: apple_png(), other("CgBI")),
    "TIFF of JPEG 2000": (lambda: tiff_compressed(34712), other("TIFF with compression 34712")),
    "TIFF of LERC": (lambda: tiff_compressed(34887), other("TIFF with compression 34887")),
    "TIFF of WebP": (lambda: tiff_compressed(50001), other("TIFF with compression 50001")),
    "TIFF of JPEG XL": (lambda: tiff_compressed(50002), other("TIFF with compression 50002")),
    "MP4": (lambda: isobmff(b"isom", b"isom", b"avc1"), other("MP4")),
    "QuickTime without brands": (lambda: struct.pack(">I", 4096) + b"moov" + bytes(64), other("QuickTime")),
    "Matroska": (lambda: b"\x1a\x45\xdf\xa3" + bytes(64), other("Matroska")),
    "AVI": (lambda: b"RIFF\x20\0\0\0AVI LIST" + bytes(24), other("AVI")),
    "JPEG XL codestream": (lambda: b"\xff\x0a\xfa\x7f\x01" + bytes(20), other("JPEG XL")),
    "JPEG XL container": (lambda: b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(20), other("JPEG XL")),
    "JPEG XR": (lambda: b"II\xbc\x01" + bytes(60), other("JPEG XR")),
    "PDF": (lambda: b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", other("PDF")),
    "EPS": (lambda: encoded(quarters(), "EPS"), other("PostScript")),
    "EPS with preview": (lambda: b"\xc5\xd0\xd3\xc6" + bytes(60), other("PostScript")),
    "PSD": (lambda: b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 8, 8, 8, 3) + bytes(64), other("PSD")),
    "WMF": (lambda: b"\xd7\xcd\xc6\x9a" + bytes(60), other("WMF")),
    "EMF": (lambda: b"\1\0\0\0" + bytes(36) + b" EMF" + bytes(60), other("EMF")),
    "DDS": (lambda: of("DDS"), other("DDS")),
    "TGA": (lambda: of("TGA"), other("TGA")),
    "TGA run-length encoded": (lambda: of("TGA", compression="tga_rle"), other("TGA")),
    "PCX": (lambda: of("PCX"), other("PCX")),
    "QOI": (lambda: b"qoif" + struct.pack(">IIBB", 8, 8, 3, 0) + bytes(20), other("QOI")),
    "cursor": (lambda: patched(icon(plain("RGB", "red")), 2, b"\2"), other("CUR")),
    "CR2": (lambda: b"II*\0\x10\0\0\0CR\2\0" + bytes(60), other("CR2")),
    "DNG": (lambda: tiff(2, 2, (8,), 1, bytes(4), (50706, 1, (1, 4, 0, 0))), other("camera RAW")),
    "NEF": (lambda: tiff(2, 2, (8,), 1, bytes(4), (254, 4, (1,)), (330, 4, (8,))), other("camera RAW")),
    "JPEG of 12 bits": (lambda: jpeg_frame(precision=12), other("12-bit")),
    "TIFF of 64-bit floats": (lambda: tiff(2, 2, (64,), 1, bytes(32), (339, 3, (3,))), other("pixel mode")),
    "BMP that holds a JPEG": (lambda: patched(bmp(8, 8, 24, of("JPEG")), 30, b"\4"), other("compression")),
}
CUT_OR_DAMAGED: dict[str, Case] = {
    "JPEG signature alone": (lambda: b"\xff\xd8\xff", CUT),
    "PNG signature alone": (lambda: b"\x89PNG\r\n\x1a\n", CUT),
    "GIF signature alone": (lambda: b"GIF89a", CUT),
    "WebP signature alone": (lambda: b"RIFF\x20\0\0\0WEBP", CUT),
    "TIFF signature alone": (lambda: b"II*\0", CUT),
    "icon signature alone": (lambda: b"\0\0\1\0\1\0", CUT),
    "JPEG 2000 signature alone": (lambda: b"\0\0\0\x0cjP  \r\n\x87\n", CUT),
    "AVIF signature alone": (lambda: isobmff(b"avif", b"mif1"), CUT),
    "two letters of a bitmap": (lambda: b"BM", NO_IMAGE),
    "JPEG cut in the header": (lambda: of("JPEG")[:200], CUT),
    "JPEG cut in the middle": (part("JPEG", 0.9), CUT),
    "JPEG without its end": (lambda: of("JPEG")[:-2], CUT),
    "JPEG progressive cut": (part("JPEG", 0.9, progressive=True), CUT),
    "PNG cut in the header": (lambda: of("PNG")[:20], CUT),
    "PNG cut in the middle": (part("PNG", 0.6), CUT),
    "GIF cut in the palette": (lambda: of("GIF")[:20], CUT),
    "GIF cut in the middle": (part("GIF", 0.9), CUT),
    "WebP cut in the header": (lambda: of("WEBP")[:24], CUT),
    "WebP cut in the middle": (part("WEBP", 0.7), CUT),
    "TIFF cut in the directory": (lambda: of("TIFF")[:40], CUT),
    "TIFF cut in the middle": (part("TIFF", 0.5), CUT),
    "TIFF compressed and cut": (part("TIFF", 0.7, compression="tiff_lzw"), CUT),
    "TIFF with a palette cut": (lambda: encoded(quarters("P"), "TIFF")[:120], CUT),
    "BMP cut in the header": (lambda: of("BMP")[:30], CUT),
    "BMP cut in the middle": (part("BMP", 0.5), CUT),
    "icon cut in the middle": (part("ICO", 0.5), CUT),
    "PPM cut in the middle": (part("PPM", 0.5), CUT),
    "JPEG 2000 cut in the middle": (part("JPEG2000", 0.7), CUT),
    "JPEG 2000 cut before its tiles": (jp2_without_tiles, CUT),
    "PNG with a damaged header": (lambda: patched(of("PNG"), 29, b"\0\0\0\0"), CUT),
    "PNG with damaged pixels": (lambda: patched(of("PNG"), 60, b"\x55" * 12), CUT),
    "PNG without pixels": (lambda: b"\x89PNG\r\n\x1a\n" + chunk(b"IEND", b""), CUT),
    "PNG larger in its header than its data": (
        lambda: patched(black_png(), 16, chunk(b"IHDR", struct.pack(">IIBBBBB", 900, 900, 8, 0, 0, 0, 0))[8:]),
        CUT,
    ),
    "PNG 0 wide": (lambda: png((0, 4), 8, 0, b""), CUT),
    "PNG 0 high": (lambda: png((4, 0), 8, 0, b""), CUT),
    "JPEG 0 high": (lambda: jpeg_frame(size=(64, 0)), CUT),
    "TIFF 0 wide": (lambda: tiff(0, 4, (8,), 1, bytes(16)), CUT),
    "BMP 0 wide": (lambda: bmp(0, 4, 24, bytes(64)), CUT),
    "JPEG 2000 larger in its codestream": (lambda: jp2(codestream_size=(60_000, 60_000)), CUT),
}
BOMBS: dict[str, Case] = {
    "PNG of 400 megapixels": (png_bomb, BOMB),
    "PNG of 400 megapixels in an icon": (lambda: icon(png_bomb()), BOMB),
    "PNG of 25 megapixels in an icon": (lambda: icon(png((5000, 5000), 1, 0, bytes(625))), BOMB),
    "bitmap of 800 megapixels in an icon": (lambda: icon(bmp(40_000, 40_000, 24, b"")[14:]), BOMB),
    "icon behind a directory entry that leads nowhere": (
        lambda: (
            struct.pack("<HHHBBBBHHIIBBBBHHII", 0, 1, 2, 9, 9, 0, 0, 1, 32, 9, 2**31, 9, 9, 0, 0, 1, 32, 9, 38)
            + png_bomb()
        ),
        BOMB,
    ),
    "GIF with a huge canvas": (lambda: patched(of("GIF"), 6, b"\xff\xff\xff\xff"), BOMB),
    "GIF with a huge frame": (lambda: gif_frame((12_000, 12_000)), BOMB),
    "BMP with a huge header": (lambda: bmp(60_000, 60_000, 24, b""), BOMB),
    "TIFF with a huge header": (lambda: tiff(100_000, 100_000, (8,), 1, b""), BOMB),
    "TIFF with a huge tile": (lambda: tiff(16, 16, (8,), 1, packed_bomb(), tile=40_000, compression=8), BOMB),
    "JPEG with a huge header": (lambda: jpeg_frame(size=(65_500, 65_500)), BOMB),
    "JPEG 2000 with a huge header": (lambda: jp2(struct.pack(">II", 20_000, 20_000)), BOMB),
    "PPM with a huge header": (lambda: b"P6 60000 60000 255\n", BOMB),
    "APNG with a huge canvas": (
        lambda: png((20_000, 20_000), 1, 0, bytes(2500), chunk(b"acTL", struct.pack(">II", 2, 0))),
        BOMB,
    ),
}
ASPECTS: dict[str, Case] = {
    "1 x 1": (lambda: plain("RGB", GREEN, size=(1, 1)), Shown((1, 1), "gggg")),
    "2 x 1": (lambda: plain("RGB", GREEN, size=(2, 1)), Shown((2, 1), "gggg")),
    "1 x 199": (lambda: plain("RGB", GREEN, size=(1, 199)), Shown((1, 199), "gggg")),
    "1 x 200": (lambda: plain("RGB", GREEN, size=(1, 200)), LONG),
    "200 x 1": (lambda: plain("RGB", GREEN, size=(200, 1)), LONG),
    "1 x 5000": (lambda: plain("RGB", GREEN, size=(1, 5000)), LONG),
}
HEALTHY_ENOUGH: dict[str, Case] = {
    **{
        f"{format_name} and garbage": (lambda format_name=format_name: of(format_name) + b"garbage" * 99, Shown())
        for format_name in ("JPEG", "PNG", "GIF", "TIFF", "BMP", "PPM")
    },
    "WebP and garbage": (lambda: of("WEBP", quality=99) + b"garbage" * 99, Shown(tolerance=25)),
    "PNG without its end": (lambda: of("PNG")[:-12], Shown()),
    "PNG with a wrong sum over its pixels": (lambda: patched(of("PNG"), len(of("PNG")) - 16, b"\0\0\0\0"), Shown()),
    "PNG with a damaged text": (lambda: black_png(damaged_chunk(b"tEXt", b"k\0v")), Shown((4, 4), "kkkk")),
    "PNG with a damaged gamma": (lambda: black_png(chunk(b"gAMA", b"\0")), Shown((4, 4), "kkkk")),
    "PNG with a text that unpacks to 30 MB": (
        lambda: black_png(chunk(b"zTXt", b"k\0\0" + packed_bomb())),
        Shown((4, 4), "kkkk"),
    ),
    "PNG with such a text behind its pixels": (
        lambda: black_png(after=chunk(b"iTXt", b"k\0\1\0\0\0" + packed_bomb())),
        Shown((4, 4), "kkkk"),
    ),
    "PNG with a profile that unpacks to 30 MB": (
        lambda: black_png(chunk(b"iCCP", b"k\0\0" + packed_bomb())),
        Shown((4, 4), "kkkk"),
    ),
    "PNG with 2 MB of plain text": (lambda: black_png(chunk(b"tEXt", b"k\0" + b"v" * 2**21)), Shown((4, 4), "kkkk")),
    "APNG with a damaged control": (lambda: black_png(chunk(b"acTL", bytes(3))), Shown((4, 4), "kkkk")),
    "JPEG with a broken profile": (lambda: of("JPEG", icc_profile=b"no profile at all"), Shown()),
    "JPEG with half a profile": (lambda: jpeg_with((0xE2, b"ICC_PROFILE\0\1\2abc")), Shown()),
    "JPEG with the longest comment": (lambda: jpeg_with((0xFE, b"c" * 65_533)), Shown()),
    "JPEG with 4 MB of metadata": (lambda: jpeg_with(*[(0xE5, bytes(65_533))] * 64), Shown()),
    "JPEG with restart markers": (lambda: of("JPEG", restart_marker_blocks=1), Shown()),
    "JPEG with thumbnails": (jpeg_with_thumbnails, Shown()),
    "JPEG progressive": (lambda: of("JPEG", progressive=True), Shown()),
    "JPEG with damaged EXIF": (damaged_exif, Shown()),
    "JPEG with EXIF cut": (lambda: jpeg_with((0xE1, b"Exif\0\0II*\0\x08\0")), Shown()),
    "JPEG 2000": (lambda: of("JPEG2000"), Shown()),
    "JPEG 2000 codestream": (lambda: of("JPEG2000", no_jp2=True), Shown()),
    "TIFF of several strips": (lambda: of("TIFF", compression="tiff_lzw"), Shown()),
    "PPM ASCII": (
        lambda: b"P3\n# made by hand\n2 2\n# white\n255\n" + b"220 30 30\n30 180 60\n40 60 200\n240 220 40\n",
        Shown((2, 2)),
    ),
    "PGM ASCII": (lambda: b"P2 2 2 15\n0 15\n15 0\n", Shown((2, 2), "kwwk")),
    "PBM ASCII": (lambda: b"P1 2 2\n1 0\n0 1\n", Shown((2, 2), "kwwk")),
    "PGM of 16 bits": (lambda: b"P5 2 2 65535\n" + struct.pack(">4H", 0, 32768, 65535, 0), Shown((2, 2), "khwk")),
    "PFM": (lambda: encoded(Image.new("F", (4, 4), 0.5), "PPM"), Shown((4, 4), "hhhh")),
    "BMP from the top down": (
        lambda: bmp(2, -2, 24, bgr("r") + bgr("g") + bytes(2) + bgr("b") + bgr("y") + bytes(2)),
        Shown((2, 2)),
    ),
    "bare DIB": (lambda: of("BMP")[14:], Shown()),
    "icon of a PNG that its directory makes smaller": (lambda: icon(of("PNG")), Shown()),
    "icon of a bitmap": (lambda: plain("RGB", GREEN, "ICO", (16, 16)), Shown((16, 16), "gggg")),
}
FRAMES: dict[str, Case] = {
    "GIF animated": (lambda: animated("GIF"), Shown()),
    "WebP animated": (lambda: animated("WEBP", lossless=True), Shown()),
    "APNG": (lambda: animated("PNG"), Shown()),
    "APNG with a default image": (lambda: animated("PNG", default_image=True), Shown()),
    "TIFF of two pages": (lambda: animated("TIFF"), Shown()),
    "MPO": (lambda: animated("MPO"), Shown()),
}
UPRIGHT = {1: "rgby", 2: "gryb", 3: "ybgr", 4: "byrg", 5: "rbgy", 6: "bryg", 7: "ygbr", 8: "gyrb"}
"""The corners of a decoded picture that is stored as rgby, by EXIF orientation."""
ORIENTATIONS: dict[str, Case] = {
    **{
        f"JPEG of orientation {number}": (
            lambda number=number: oriented(number),
            Shown(SIZE if number < 5 else TALL, corners),
        )
        for number, corners in UPRIGHT.items()
    },
    "JPEG of orientation 0": (lambda: oriented(0), Shown()),
    "JPEG of orientation 9": (lambda: oriented(9), Shown()),
    "PNG of orientation 6": (lambda: oriented(6, "PNG"), Shown(TALL, UPRIGHT[6])),
    "TIFF of orientation 6": (lambda: oriented(6, "TIFF"), Shown(TALL, UPRIGHT[6])),
    "TIFF compressed, of orientation 8": (lambda: oriented(8, "TIFF", compression="tiff_lzw"), Shown(TALL, UPRIGHT[8])),
    "WebP of orientation 3": (lambda: oriented(3, "WEBP", lossless=True), Shown(SIZE, UPRIGHT[3])),
}
MODES: dict[str, Case] = {
    "CMYK JPEG": (lambda: encoded(quarters("CMYK"), "JPEG", quality=95), Shown(tolerance=12)),
    "CMYK JPEG without Adobe's mark": (
        lambda: without_adobe_segment(plain("CMYK", (0, 255, 255, 0), "JPEG")),
        Shown((8, 8), "rrrr", 40),
    ),
    "YCCK JPEG": (ycck, Shown((8, 8), "rrrr", 40)),
    "CMYK TIFF": (lambda: encoded(quarters("CMYK"), "TIFF"), Shown()),
    "Lab TIFF": (lab, Shown()),
    "grey JPEG": (lambda: plain("L", 128, "JPEG"), Shown((8, 8), "hhhh")),
    "1 bit": (lambda: plain("1", 1), Shown((8, 8), "wwww")),
    "1 bit, white is zero": (lambda: tiff(8, 2, (1,), 0, b"\0\0"), Shown((8, 2), "wwww")),
    "grey and alpha": (lambda: plain("LA", (128, 255)), Shown((8, 8), "hhhh")),
    "grey of 4 bits, one shade transparent": (
        lambda: png((2, 2), 4, 0, b"\x5f", chunk(b"tRNS", b"\0\5")),
        Shown((2, 2), "wwww"),
    ),
    "palette": (lambda: encoded(quarters("P")), Shown()),
    "palette, one colour transparent": (lambda: palette_png(b"\xff\0"), Shown((4, 4), "rwrw")),
    "palette with alphas": (lambda: palette_png(b"\0\xff\xff\xff"), Shown((4, 4), "wgwg")),
    "GIF, one colour transparent": (
        lambda: encoded(quarters("P"), "GIF", transparency=quarters("P").getpixel((0, 0))),
        Shown(corners="wgby"),
    ),
    "colours, one transparent": (
        lambda: png((2, 2), 8, 2, bytes(3) + bytes(GREEN), chunk(b"tRNS", bytes(6))),
        Shown((2, 2), "wgwg"),
    ),
    "transparent throughout": (lambda: plain("RGBA", (255, 0, 0, 0)), Shown((8, 8), "wwww")),
    "half transparent black": (lambda: plain("RGBA", (0, 0, 0, 127)), Shown((8, 8), "hhhh")),
    "grey with premultiplied alpha": (
        lambda: tiff(2, 2, (8, 8), 1, bytes([64, 127] * 4), (338, 3, (1,))),
        Shown((2, 2), "w" * 4, 64),
    ),
    "BMP with alpha 0 throughout": (lambda: bmp(2, 2, 32, (bgr("g") + b"\0") * 4, ARGB), Shown((2, 2), "gggg")),
    "BMP with alpha": (lambda: bmp(2, 1, 32, bgr("g") + b"\xff" + bytes(4), ARGB), Shown((2, 1), "gwgw")),
    "16-bit grey": (lambda: png((4, 4), 16, 0, ROW16), Shown((4, 4), "kwkw", 1)),
    "16-bit grey at half": (lambda: plain("I;16", 32768), Shown((8, 8), "hhhh", 1)),
    "16-bit grey that is dark": (lambda: plain("I;16", 200), Shown((8, 8), "kkkk", 1)),
    "16-bit grey, one shade transparent": (
        lambda: png((4, 4), 16, 0, ROW16, chunk(b"tRNS", b"\0\0")),
        Shown((4, 4), "wwww", 1),
    ),
    "16-bit colours": (
        lambda: png(
            (2, 2), 16, 2, b"".join(struct.pack(">3H", *(257 * value for value in COLOURS[corner])) for corner in "rg")
        ),
        Shown((2, 2), "rgrg", 1),
    ),
    "16-bit colours, one transparent": (
        lambda: png(
            (2, 2), 16, 2, bytes(6) + struct.pack(">3H", *(257 * value for value in GREEN)), chunk(b"tRNS", bytes(6))
        ),
        Shown((2, 2), "wgwg", 1),
    ),
    "16-bit TIFF": (lambda: plain("I;16", 32768, "TIFF"), Shown((8, 8), "hhhh", 1)),
    "16-bit TIFF, white is zero": (
        lambda: tiff(2, 2, (16,), 0, struct.pack("<4H", 0, 65535, 32768, 0)),
        Shown((2, 2), "wkhw", 1),
    ),
    "12-bit TIFF": (lambda: tiff(2, 2, (12,), 1, bytes([0xFF, 0xF0, 0, 0x80, 0, 0])), Shown((2, 2), "wkhk", 1)),
    "32-bit TIFF of 8-bit values": (lambda: numbers(np.array([0, 128, 255, 0], np.int32)), Shown((2, 2), "khwk", 1)),
    "32-bit TIFF of 16-bit values": (
        lambda: numbers(np.array([0, 32768, 65535, 0], np.int32)),
        Shown((2, 2), "khwk", 1),
    ),
    "32-bit TIFF of large values": (
        lambda: numbers(np.array([-(2**30), 0, 2**30, -(2**30)], np.int32)),
        Shown((2, 2), "khwk", 1),
    ),
    "32-bit TIFF without signs": (
        lambda: tiff(2, 2, (32,), 1, struct.pack("<4I", 0, 2**31, 2**32 - 1, 0)),
        Shown((2, 2), "khwk", 1),
    ),
    "float TIFF up to 1": (lambda: numbers(np.array([0, 0.5, 1, 0], np.float32)), Shown((2, 2), "khwk", 1)),
    "float TIFF up to 255": (lambda: numbers(np.array([0, 128, 255, 0], np.float32)), Shown((2, 2), "khwk", 1)),
    "float TIFF of any values": (lambda: numbers(np.array([-80, 10, 100, -80], np.float32)), Shown((2, 2), "khwk", 1)),
    "float TIFF of one value": (lambda: numbers(np.full(4, -3.5, np.float32)), Shown((2, 2), "kkkk", 1)),
    "float TIFF with infinities and none": (
        lambda: numbers(np.array([np.nan, 0.5, np.inf, -np.inf], np.float32)),
        Shown((2, 2), "khwk", 1),
    ),
    "float TIFF of extreme values": (
        lambda: numbers(np.array([-3e38, 3e38, 3e38, -3e38], np.float32)),
        Shown((2, 2), "kwwk", 1),
    ),
}
AVIF: dict[str, Case] = {
    "AVIF": (lambda: of("AVIF", quality=95), Shown(tolerance=12)),
    "AVIF by a compatible brand": (lambda: patched(of("AVIF", quality=95), 8, b"mif1"), Shown(tolerance=12)),
    "AVIF cut in the middle": (part("AVIF", 0.9), CUT),
    "AVIF with a huge header": (lambda: avif_claiming((12_000, 12_000)), BOMB),
    "AVIF of orientation 6": (lambda: oriented(6, "AVIF", quality=95), Shown(TALL, UPRIGHT[6], 12)),
}
CORPUS: dict[str, Case] = {
    **NOT_IMAGES,
    **OTHER_FORMATS,
    **CUT_OR_DAMAGED,
    **BOMBS,
    **ASPECTS,
    **HEALTHY_ENOUGH,
    **FRAMES,
    **ORIENTATIONS,
    **MODES,
    **(AVIF if features.check("avif") else {}),
}


def corners_of(image: Image.Image) -> list[tuple[int, int, int]]:
    right, bottom = image.width - 1 - image.width // 8, image.height - 1 - image.height // 8
    left, top = image.width // 8, image.height // 8
    return [image.getpixel(point) for point in ((left, top), (right, top), (left, bottom), (right, bottom))]


@pytest.mark.parametrize("name", CORPUS)
def test_each_file_has_the_stated_outcome(name: str) -> None:
    make, expected = CORPUS[name]
    outcome = decode(make())
    if isinstance(expected, Refused):
        assert isinstance(outcome, ImageProblem)
        assert outcome.reason == expected.reason
        assert expected.named in outcome.detail
        return
    assert isinstance(outcome, Image.Image), outcome
    assert (outcome.mode, outcome.size) == ("RGB", expected.size)
    for colour, corner in zip(corners_of(outcome), expected.corners, strict=True):
        assert colour == pytest.approx(COLOURS[corner], abs=expected.tolerance)


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_found_before_any_pixel_is_decoded(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = []
    monkeypatch.setattr(ImageFile.ImageFile, "load", loaded.append)
    problem = decode(BOMBS[name][0]())
    assert isinstance(problem, ImageProblem)
    assert problem.reason == Reason.TOO_MANY_PIXELS
    assert loaded == []


def cuts_of(whole: bytes) -> list[int]:
    """Truncation at every length in the header and near the end, and at some lengths in between."""
    end = len(whole)
    return sorted({*range(1, min(end, 240)), *range(240, end, 37), *range(end - 30, end)})


@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "ICO", "PPM", "JPEG2000"])
@pytest.mark.parametrize("mode", ["L", "P", "RGB"])
def test_a_cut_file_is_refused_or_decodes_as_the_whole_one(format_name: str, mode: str) -> None:
    picture = quarters("L" if (format_name, mode) in (("JPEG", "P"), ("PPM", "P"), ("JPEG2000", "P")) else mode)
    whole = encoded(picture, format_name)
    shown = decode(whole)
    assert isinstance(shown, Image.Image)
    for length in cuts_of(whole):
        outcome = decode(whole[:length])
        if isinstance(outcome, ImageProblem):
            allowed = {Reason.TRUNCATED_IMAGE} | ({Reason.NOT_AN_IMAGE} if length < 18 else set())
            assert outcome.reason in allowed, length
        else:
            assert outcome.tobytes() == shown.tobytes(), length


def test_each_file_has_its_row_in_a_run_over_all(tmp_path: Path) -> None:
    for number, (make, _) in enumerate(CORPUS.values()):
        # The wrong suffixes must not matter.
        (tmp_path / f"{number:03d}.jpg").write_bytes(make())
    files = sorted(tmp_path.iterdir())
    model = ScriptedEngine(ScriptedEngineConfig(kind="scripted"), (3136, 12544), 8)
    stage = Annotate(model, TASKS["demo_world"], AnnotateConfig(), AnswerConfig())
    work = [ImageWork(file.name, str(file), (ImageRef(file.name, str(file)),), file.read_bytes()) for file in files]

    async def run() -> list[tuple[str, str, str | None]]:
        rows = [row for rows in await asyncio.gather(*map(stage.visit, work)) for row in rows]
        return [(row.image_id, row.state, row.reason) for row in rows]

    expected = [expected for _, expected in CORPUS.values()]
    states = [("failed", e.reason.value) if isinstance(e, Refused) else ("kept", None) for e in expected]
    assert asyncio.run(run()) == [(file.name, *state) for file, state in zip(files, states, strict=True)]


def test_the_corpus_is_large() -> None:
    assert len(CORPUS) >= 70
