"""A built-in picture that tests whether an engine works."""

from __future__ import annotations

import io

from PIL import Image

from mpa_ray.config import SamplingConfig
from mpa_ray.engine.protocol import Request, RequestRefused, VisionLanguageModel
from mpa_ray.imaging.decode import ImageProblem

PROBE_ID = "the built-in test picture"
"""The id of the picture, which errors show."""
_SIDE = 64
"""In pixels. The picture is small, so that no limit on pixels excludes it; engines scale it up."""
_REQUEST = Request("What is in this picture?", SamplingConfig(max_new_tokens=4))


async def answer_probe(model: VisionLanguageModel) -> None:
    """Send a small request about the picture, and wait for the reply. A refusal also counts as an answer.

    Raises:
        EngineDied: the engine cannot answer.
    """
    try:
        image = await model.encode_image(PROBE_ID, probe_picture())
        if not isinstance(image, ImageProblem):
            await model.generate(image, _REQUEST)
    except RequestRefused:
        return


def probe_picture() -> bytes:
    """The picture as a PNG file: a colour gradient."""
    buffer = io.BytesIO()
    bands = (Image.linear_gradient("L"), Image.linear_gradient("L").rotate(90), Image.radial_gradient("L"))
    Image.merge("RGB", bands).resize((_SIDE, _SIDE)).save(buffer, "PNG")
    return buffer.getvalue()
