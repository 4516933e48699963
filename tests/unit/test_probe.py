"""The built-in picture that an engine answers before an image is blamed for its death."""

from __future__ import annotations

import asyncio
import io

import pytest
from PIL import Image

from mpa_ray.config import ScriptedEngineConfig
from mpa_ray.engine.probe import PROBE_ID, answer_probe, probe_picture
from mpa_ray.engine.protocol import EngineDied
from mpa_ray.engine.scripted import ScriptedEngine
from mpa_ray.engine.timeout import WithTimeout


def engine(**settings: object) -> WithTimeout:
    config = ScriptedEngineConfig.model_validate({"kind": "scripted", **settings})
    return WithTimeout(ScriptedEngine(config, (3136, 200_000, 10**6), 4), 0.05)


def test_the_picture_is_a_small_file_that_is_always_the_same() -> None:
    picture = probe_picture()
    image = Image.open(io.BytesIO(picture))
    image.load()
    assert (image.format, image.size, image.mode) == ("PNG", (64, 64), "RGB")
    assert len(image.getcolors(64 * 64) or ()) > 1000
    assert picture == probe_picture()


def test_an_engine_that_answers_or_refuses_is_alive() -> None:
    asyncio.run(answer_probe(engine()))
    asyncio.run(answer_probe(engine(fail_on=[PROBE_ID])))


@pytest.mark.parametrize("settings", [{"die_on": [PROBE_ID]}, {"hang_on": [PROBE_ID]}])
def test_an_engine_that_dies_or_hangs_is_not(settings: dict[str, list[str]]) -> None:
    with pytest.raises(EngineDied, match=PROBE_ID):
        asyncio.run(answer_probe(engine(**settings)))
