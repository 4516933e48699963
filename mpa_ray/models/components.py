"""The parts of a vision-language model, told by the names of its modules."""

from __future__ import annotations

import re

from mpa_ray.config import Component

_PARTS: dict[Component, re.Pattern[str]] = {
    "projector": re.compile(
        r"(?:^|\.)(?:merger|deepstack_merger_list|multi_modal_projector|connector|image_newline)(?:\.|$)"
    ),
    "vision": re.compile(r"(?:^|\.)(?:visual|vision_tower|vision_model)(?:\.|$)"),
}
"""Names on the way to a module, in this order: Qwen2-VL, Qwen2.5-VL and Qwen3-VL have `visual` with its `merger`s,
SmolVLM and Idefics3 `vision_model` and `connector`, InternVL and LLaVA `vision_tower` and `multi_modal_projector`."""


def component_of(name: str) -> Component:
    """Which part of a model a module or parameter belongs to."""
    return next((part for part, pattern in _PARTS.items() if pattern.search(name)), "language")
