"""What of a model is trained: by default its language model, never its vision tower or projector unasked."""

from __future__ import annotations

import re
from typing import Any

from mpa_ray.config import FullConfig, LoraConfig

VISION_MODULES = re.compile(r".*(visual|vision_tower|vision_model|multi_modal_projector|connector|merger).*")
"""Module names of the vision side in Qwen2-VL, Qwen2.5-VL, Qwen3-VL, SmolVLM, Idefics3, InternVL and LLaVA."""


def prepare_for_training(model: Any, method: LoraConfig | FullConfig) -> Any:
    """Freeze what is not trained, and wrap the model in adapters where they are asked for.

    Raises:
        AssertionError: a parameter of the vision side would be trained unasked.
    """
    if isinstance(method, LoraConfig):
        model = _with_adapters(model, method)
    else:
        for name, parameter in model.named_parameters():
            parameter.requires_grad = method.train_vision or not VISION_MODULES.match(name)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained, "nothing would be trained"
    if isinstance(method, LoraConfig) or not method.train_vision:
        assert not any(map(VISION_MODULES.match, trained)), "the vision side would be trained"
    return model


def _with_adapters(model: Any, method: LoraConfig) -> Any:
    import peft

    adapters = peft.LoraConfig(
        r=method.rank,
        lora_alpha=method.alpha,  # type: ignore[arg-type]
        lora_dropout=method.dropout,
        target_modules="all-linear",
        exclude_modules=VISION_MODULES.pattern,
        task_type="CAUSAL_LM",
    )
    return peft.get_peft_model(model, adapters)
