"""A real vLLM engine computes the largest image that a model's settings allow."""

from __future__ import annotations

import asyncio
import json
from functools import partial
from pathlib import Path

import pytest

from mpa_ray.config import ModelConfig, SamplingConfig, VllmEngineConfig
from mpa_ray.engine.protocol import Reply, Request
from mpa_ray.engine.vllm.engine import VllmEngine
from mpa_ray.imaging.decode import ImageProblem
from mpa_ray.tasks.library import TASKS
from tests.families import file_of, internvl, write

TASK = TASKS["demo_world"]


async def answered(model: ModelConfig, sizes: list[tuple[int, int]]) -> list[Reply]:
    assert isinstance(model.engine, VllmEngineConfig)
    engine = VllmEngine(model, model.engine, max_images_in_flight=2)
    try:
        replies = []
        for size in sizes:
            image = await engine.encode_image(str(size), file_of(size))
            assert not isinstance(image, ImageProblem)
            for question in ("What is in place 1?", "What is in place 2?"):
                request = Request(TASK.answer_prompt(question), SamplingConfig(max_new_tokens=4))
                replies.append(await engine.generate(image, request))
        return replies
    finally:
        engine.close()


@pytest.mark.long
@pytest.mark.timeout(300)
def test_an_image_of_all_tiles_is_computed_and_cached(tmp_path: Path) -> None:
    """InternVL makes 13 tiles of 256 tokens of an image at 4:3, although its settings name no tiles.

    Its generation settings are such that vLLM could not read them.
    """
    folder = write(partial(internvl, side=448), tmp_path / "internvl")
    generation = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps({**generation, "num_return_sequences": 3}))
    serving = VllmEngineConfig(dtype="float32", max_num_seqs=4)
    replies = asyncio.run(answered(ModelConfig(model=str(folder), engine=serving), [(640, 480), (500, 500)]))
    first, second, one_tile, _ = replies
    assert 13 * 256 < first.num_prompt_tokens < 13 * 256 + 256
    assert one_tile.num_prompt_tokens == first.num_prompt_tokens - 12 * 256
    assert second.num_uncached_image_tokens == 0
