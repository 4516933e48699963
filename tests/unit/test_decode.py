"""Every file decodes to an image or to a reason, and none raises an error."""

from __future__ import annotations

import io
import sys
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mpa_ray.config import MAX_IMAGE_PIXELS, ModelConfig
from mpa_ray.imaging.decode import (
    FORMATS,
    SIGNATURES,
    ImageProblem,
    PreparedImage,
    decode,
    fit,
    prepare,
    recognise_format,
)
from mpa_ray.records import Reason

# Pillow warns about damaged files.
pytestmark = pytest.mark.filterwarnings(r"ignore:::PIL\.")


def encoded(image: Image.Image, format_name: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_name, **options)
    return buffer.getvalue()


WHOLE = encoded(Image.effect_noise((64, 64), 90), "JPEG")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", Reason.EMPTY_FILE),
        (b"hello, this is no image", Reason.NOT_AN_IMAGE),
        (WHOLE[: len(WHOLE) // 2], Reason.TRUNCATED_IMAGE),
        (encoded(Image.new("RGB", (64, 64), "red"))[:60], Reason.TRUNCATED_IMAGE),
        (b"P5 20000 20000 255 ", Reason.TOO_MANY_PIXELS),
        (encoded(Image.new("RGB", (2_000, 2))), Reason.EXTREME_ASPECT_RATIO),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', Reason.UNSUPPORTED_FORMAT),
    ],
)
def test_a_file_that_cannot_be_decoded_has_a_reason(content: bytes, reason: Reason) -> None:
    problem = decode(content)
    assert isinstance(problem, ImageProblem)
    assert problem.reason == reason


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "YCbCr"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    format_name = "TIFF" if mode in ("CMYK", "YCbCr", "I") else "PNG"
    image = decode(encoded(Image.new(mode, (8, 6)), format_name))
    assert isinstance(image, Image.Image)
    assert (image.mode, image.size) == ("RGB", (8, 6))


def test_transparent_pixels_become_white() -> None:
    image = decode(encoded(Image.new("RGBA", (4, 4), (255, 0, 0, 0))))
    assert isinstance(image, Image.Image)
    assert image.getpixel((0, 0)) == (255, 255, 255)


def test_sixteen_bits_keep_their_brightness() -> None:
    image = decode(encoded(Image.new("I;16", (4, 4), 65535)))
    assert isinstance(image, Image.Image)
    assert image.getpixel((0, 0)) == (255, 255, 255)


def test_exif_rotation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = decode(encoded(Image.new("RGB", (10, 4)), "JPEG", exif=exif))
    assert isinstance(image, Image.Image)
    assert image.size == (4, 10)


def test_an_animation_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    image = decode(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert isinstance(image, Image.Image)
    assert image.getpixel((0, 0)) == (255, 0, 0)


@given(
    st.sampled_from([b"", *(encoded(Image.new("RGB", (9, 7)), name)[:16] for name in FORMATS)]), st.binary(max_size=200)
)
def test_no_content_raises_an_error(beginning: bytes, content: bytes) -> None:
    decode(beginning + content)


def with_exif() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "a description"
    return encoded(Image.new("RGB", (10, 4)), "JPEG", exif=exif)


SMALL = [with_exif()] + [
    encoded(Image.new("RGB", (9, 7), "red"), format_name)
    for format_name in ("PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "ICO", "PPM", "JPEG2000", "DDS", "TGA", "PCX")
]


@given(st.sampled_from(SMALL), st.data())
@settings(max_examples=400, deadline=None)
def test_no_damage_raises_an_error(whole: bytes, data: st.DataObject) -> None:
    damaged = bytearray(whole)
    for position, value in data.draw(st.lists(st.tuples(st.integers(0, len(whole) - 1), st.integers(0, 255)))):
        damaged[position] = value
    decode(bytes(damaged))


def test_damaged_exif_data_do_not_affect_the_image() -> None:
    whole = with_exif()
    start = whole.index(b"Exif")
    damaged = whole[: start + 14] + b"\xff" * 12 + whole[start + 26 :]
    image = decode(damaged)
    assert isinstance(image, Image.Image)
    assert image.size in ((4, 10), (10, 4))


def test_no_external_program_decodes_a_file() -> None:
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n{} loop\n"
    assert decode(postscript) == ImageProblem(Reason.UNSUPPORTED_FORMAT, "PostScript")


def test_formats_that_are_not_decoded_are_recognised() -> None:
    assert recognise_format(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic") == "HEIC"
    assert recognise_format(b"hello") is None


def test_every_decoded_format_has_a_signature() -> None:
    assert set(FORMATS) <= set(SIGNATURES)


@pytest.mark.parametrize("size", [(1, 1), (1, 199), (7, 5)])
def test_small_images_are_scaled_up(size: tuple[int, int]) -> None:
    prepared = prepare(encoded(Image.new("RGB", size, "red")), 3136, 12544)
    assert isinstance(prepared, PreparedImage)
    assert prepared.image.width * prepared.image.height >= 3136
    assert prepared.image.getpixel((0, 0)) == (255, 0, 0)


def test_an_image_that_scaling_makes_too_long_is_refused() -> None:
    strip = encoded(Image.new("RGB", (50, 9990)))
    assert isinstance(decode(strip), Image.Image)
    problem = prepare(strip, 1, 401_408)
    assert isinstance(problem, ImageProblem)
    assert problem.reason == Reason.EXTREME_ASPECT_RATIO


@given(st.integers(1, 900), st.integers(1, 900))
@settings(max_examples=60, deadline=None)
def test_fit_keeps_the_limits(width: int, height: int) -> None:
    fitted = fit(Image.new("RGB", (width, height)), 3136, 12544)
    area = fitted.width * fitted.height
    assert area <= 12544 or min(fitted.size) == 1
    assert area >= 3136 or width * height >= 3136


def test_cache_keys_differ_between_files_and_between_pixel_limits() -> None:
    one, other = encoded(Image.new("RGB", (64, 64), "red")), encoded(Image.new("RGB", (64, 64), "blue"))
    prepared = [prepare(one, 1, 100), prepare(one, 1, 100), prepare(other, 1, 100), prepare(one, 1, 200)]
    keys = [p.key for p in prepared if not isinstance(p, ImageProblem)]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3


def test_the_limit_of_pixels_is_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    """In earlier versions, Pillow refused an image of more than twice its own limit, whatever the setting."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    picture = encoded(Image.new("RGB", (60, 50), "red"), "WEBP")
    refused = prepare(picture, 1, 10_000, 2_999)
    assert refused == ImageProblem(Reason.TOO_MANY_PIXELS, "60 x 50")
    shown = prepare(picture, 1, 10_000, 3_000)
    assert isinstance(shown, PreparedImage)
    assert shown.image.size == (60, 50)


def test_a_model_has_a_limit_of_pixels() -> None:
    assert ModelConfig(model="m", min_pixels=1, max_pixels=2).pixel_limits == (1, 2, MAX_IMAGE_PIXELS)
    assert ModelConfig(model="m", min_pixels=1, max_pixels=2, max_image_pixels=3).pixel_limits == (1, 2, 3)


HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"


def test_heic_without_its_decoder_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mpa_ray.imaging.decode.reads_heic", lambda: False)
    assert decode(HEIC) == ImageProblem(Reason.UNSUPPORTED_FORMAT, "HEIC (needs mpa-ray[heic])")


def test_heic_is_decoded_under_the_same_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a decoder that stands in for pi-heif: the limits apply to its images, and its errors become reasons."""
    pictures = {b"small": Image.new("RGBA", (8, 6), (255, 0, 0, 0)), b"large": Image.new("RGB", (90, 90))}

    def opened(file: io.BytesIO) -> Image.Image:
        kind = file.read()[len(HEIC) :]
        if kind not in pictures:
            raise SyntaxError(kind.decode())
        return pictures[kind]

    monkeypatch.setattr("mpa_ray.imaging.decode.reads_heic", lambda: True)
    monkeypatch.setitem(sys.modules, "pi_heif", SimpleNamespace(HeifImageFile=opened))
    shown = decode(HEIC + b"small", 8000)
    assert isinstance(shown, Image.Image)
    assert (shown.mode, shown.getpixel((0, 0))) == ("RGB", (255, 255, 255))
    assert decode(HEIC + b"large", 8000) == ImageProblem(Reason.TOO_MANY_PIXELS, "90 x 90")
    cut = decode(HEIC + b"Invalid input: End of file")
    assert isinstance(cut, ImageProblem)
    assert cut.reason == Reason.TRUNCATED_IMAGE
    unknown = decode(HEIC + b"Unsupported feature: Unsupported codec")
    assert isinstance(unknown, ImageProblem)
    assert unknown.reason == Reason.UNSUPPORTED_FORMAT
