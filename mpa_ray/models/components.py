"""The components of a vision-language model (language, projector, vision), recognised by the names of its modules."""

from __future__ import annotations

import re

from mpa_ray.config import Component

_NAMES: dict[Component, re.Pattern[str]] = {
    "projector": re.compile(
        r"(?:^|\.)(?:merger|deepstack_merger_list|multi_modal_projector|connector|image_newline)(?:\.|$)"
    ),
    "vision": re.compile(r"(?:^|\.)(?:visual|vision_tower|vision_model)(?:\.|$)"),
}
"""Patterns of names on the path to a module; the first component that matches wins. Qwen2-VL, Qwen2.5-VL and Qwen3-VL
have `visual`, which contains `merger` modules. SmolVLM and Idefics3 have `vision_model` and `connector`. InternVL and
LLaVA have `vision_tower` and `multi_modal_projector`."""


def component_of(name: str) -> Component:
    """The component that a module or parameter belongs to."""
    return next((component for component, pattern in _NAMES.items() if pattern.search(name)), "language")
