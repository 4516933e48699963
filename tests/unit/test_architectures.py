"""The bundled models are trained on the same inputs that their processors give later."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from mpa_ray.demo.architectures import TASK, WorldArchitecture
from mpa_ray.demo.train import MODELS
from mpa_ray.demo.world import WorldSpec, paint, sample_scene
from mpa_ray.models.chat_template import render
from mpa_ray.tasks.task import SYSTEM_PROMPT

SPEC = WorldSpec()
QUESTION = "What shape is the red object?"


@pytest.mark.parametrize("architecture", {architecture for architecture, _ in MODELS.values()})
def test_training_inputs_equal_those_of_the_processor(architecture: WorldArchitecture) -> None:
    _, processor = architecture.build(SPEC)
    rng = random.Random(0)
    pictures = [paint(sample_scene(SPEC, rng)) for _ in range(3)]
    prompt = render(processor, TASK.answer_prompt(QUESTION))
    expected = processor(text=[prompt] * 3, images=[[picture] for picture in pictures], return_tensors="pt")
    text = (
        f"<|im_start|>system\n{SYSTEM_PROMPT}<|im_end|>\n<|im_start|>user\n{architecture.image(SPEC)}"
        f"{TASK.answer_prompt(QUESTION)}<|im_end|>\n<|im_start|>assistant\n"
    )
    assert processor.tokenizer(text, add_special_tokens=False)["input_ids"] == expected["input_ids"][0].tolist()
    image_token_id = processor.tokenizer.convert_tokens_to_ids(architecture.image_text[1])
    inputs = architecture.inputs(np.stack([np.asarray(p) for p in pictures]), expected["input_ids"], image_token_id)
    assert {*inputs, "input_ids", "attention_mask"} == {*expected}
    for name, tensor in inputs.items():
        torch.testing.assert_close(tensor.float(), expected[name].float(), atol=1e-5, rtol=0)
