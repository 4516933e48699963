"""On real vLLM, a template that opens reasoning: the prompt, the reply, its limit, and the check of an export."""

from __future__ import annotations

import asyncio
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForImageTextToText

from mpa_ray.config import ModelConfig, SamplingConfig, VllmEngineConfig, resolve_path
from mpa_ray.demo.world import WorldSpec, paint, sample_scene
from mpa_ray.engine.protocol import Reply, Request
from mpa_ray.engine.vllm.engine import VllmEngine
from mpa_ray.imaging.decode import ImageProblem
from mpa_ray.imaging.prepare import ImageScaling
from mpa_ray.leveling.batching import TrainingRow
from mpa_ray.leveling.export import CheckQuestions
from mpa_ray.models.chat_template import load_processor
from mpa_ray.records import ParitySample
from mpa_ray.tasks.library import TASKS

TASK = TASKS["demo_world"]
PIXELS = (112 * 112, 112 * 112)
SWITCH = (
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% else %}<think>\n{% endif %}"
)
NO_THINKING = {"enable_thinking": False}
QUESTION = "What colour is the square?"
SERVING = VllmEngineConfig(dtype="float32", max_model_len=1024, max_num_seqs=4)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """The bundled teacher, with a template that opens the reasoning."""
    folder = tmp_path / "model"
    shutil.copytree(resolve_path("bundled:demo/models/teacher"), folder)
    processor = load_processor(str(folder))
    prompt = "{% if add_generation_prompt %}<|im_start|>assistant\n"
    template = processor.chat_template.replace(prompt, prompt + SWITCH)
    assert template != processor.chat_template
    processor.chat_template = processor.tokenizer.chat_template = template
    processor.save_pretrained(folder)
    return folder


def row_in(folder: Path) -> TrainingRow:
    path = folder / "a.png"
    paint(sample_scene(WorldSpec(), random.Random(1))).save(path)
    return TrainingRow(ParitySample("a#0", "a.png", str(path), QUESTION, "a", "b"), 1)


async def replies(model: ModelConfig, image: bytes, *limits: int, **request: Any) -> list[Reply]:
    engine = VllmEngine(model, SERVING, max_images_in_flight=4)
    try:
        encoded = await engine.encode_image("a", image)
        assert not isinstance(encoded, ImageProblem)
        prompt = TASK.answer_prompt(QUESTION)
        return [
            await engine.generate(encoded, Request(prompt, SamplingConfig(max_new_tokens=limit), **request))
            for limit in limits
        ]
    finally:
        engine.close()


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("arguments", [{}, NO_THINKING], ids=["reasoning", "no reasoning"])
def test_an_engine_renders_and_reads_replies_as_the_check_of_an_export_does(
    arguments: dict[str, Any], checkpoint: Path, tmp_path: Path
) -> None:
    row, processor = row_in(tmp_path), load_processor(str(checkpoint))
    content = Path(row.uri).read_bytes()
    model = ModelConfig(
        model=str(checkpoint),
        engine=SERVING,
        min_pixels=PIXELS[0],
        max_pixels=PIXELS[1],
        chat_template_args=arguments,
        max_reasoning_tokens=12,
    )
    long, short = asyncio.run(replies(model, content, 8, 1))
    scaling = ImageScaling.of(processor, *PIXELS)
    questions = CheckQuestions([row], [content], TASK, scaling, 8, arguments, 12)
    answers = questions.answers(AutoModelForImageTextToText.from_pretrained(checkpoint), processor)
    assert [answer.text for answer in answers] == [long.answer]
    if arguments:
        # The prompt closes the reasoning, so the model answers, and only the answer counts.
        assert not long.text.startswith("<think>")
        assert long.answer
        assert len(processor.tokenizer(short.answer)["input_ids"]) <= 1
    else:
        # The bundled model never learned to close the reasoning, so it ends before an answer begins.
        assert long.text.startswith("<think>")
        assert long.is_all_reasoning
        assert long.answer == ""
    rendered = processor.apply_chat_template(
        [
            {"role": "system", "content": [{"type": "text", "text": "You are a helpful assistant."}]},
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": TASK.answer_prompt(QUESTION)}]},
        ],
        add_generation_prompt=True,
        tokenize=False,
        **arguments,
    )
    image = scaling.prepare(content)
    assert not isinstance(image, ImageProblem)
    expected = processor(
        text=[rendered], images=[[image.image]], return_tensors="pt", **scaling.processor_arguments([image.image])
    )
    assert long.num_prompt_tokens == expected["input_ids"].shape[1]
