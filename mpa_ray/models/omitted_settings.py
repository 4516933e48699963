"""The settings that a checkpoint's config.json leaves out because they equal the defaults of its classes.

A test compares these defaults with those of transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ConfigJson = dict[str, Any]
"""The content of a config.json, or of a part of it: a foreign format."""

_LLAMA: ConfigJson = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 32000,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}
_QWEN2: ConfigJson = {**_LLAMA, "intermediate_size": 22016, "vocab_size": 151936, "max_position_embeddings": 32768}
_QWEN2_VL: ConfigJson = {
    "hidden_size": 8192,
    "intermediate_size": 29568,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 152064,
    "max_position_embeddings": 32768,
}
_GEMMA2: ConfigJson = {
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "vocab_size": 256000,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
TEXT_DEFAULTS: Mapping[str, ConfigJson] = {
    "llama": _LLAMA,
    "mistral": {
        **_LLAMA,
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
    },
    "qwen2": _QWEN2,
    "qwen3": {**_QWEN2, "head_dim": 128},
    "qwen2_vl_text": _QWEN2_VL,
    "qwen2_5_vl_text": _QWEN2_VL,
    "qwen3_vl_text": {**_QWEN2, "head_dim": 128, "max_position_embeddings": 128000},
    "gemma": {
        **_GEMMA2,
        "hidden_size": 3072,
        "intermediate_size": 24576,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
    },
    "gemma2": _GEMMA2,
    "gemma3_text": {**_GEMMA2, "vocab_size": 262208, "max_position_embeddings": 131072},
    "phi3": {
        **_LLAMA,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "vocab_size": 32064,
        "max_position_embeddings": 4096,
    },
    "stablelm": {
        **_LLAMA,
        "hidden_size": 2560,
        "intermediate_size": 6912,
        "vocab_size": 50304,
        "max_position_embeddings": 4096,
    },
}
"""By model type. Without `num_key_value_heads`, each head has keys and values; without `head_dim`, it follows from the
width."""

_VIT: ConfigJson = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 16,
}
_IDEFICS3: ConfigJson = {**_VIT, "hidden_size": 1152, "num_attention_heads": 16, "patch_size": 32}
_CLIP_LARGE: ConfigJson = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}
_SIGLIP_SO400M: ConfigJson = {
    **_CLIP_LARGE,
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "image_size": 384,
}
VISION_DEFAULTS: Mapping[str, ConfigJson] = {
    "siglip_vision_model": _VIT,
    "clip_vision_model": {**_VIT, "patch_size": 32},
    "idefics3_vision": _IDEFICS3,
    "smolvlm_vision": _IDEFICS3,
    "internvl_vision": {**_CLIP_LARGE, "image_size": [448, 448], "patch_size": [14, 14]},
    "qwen2_vl_vision": {
        "depth": 32,
        "embed_dim": 1280,
        "hidden_size": 3584,
        "mlp_ratio": 4,
        "num_heads": 16,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    },
    "qwen2_5_vl_vision": {
        "depth": 32,
        "hidden_size": 3584,
        "intermediate_size": 3420,
        "num_heads": 16,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    },
    "qwen3_vl_vision": {
        "depth": 27,
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_heads": 16,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "deepstack_visual_indexes": [8, 16, 24],
    },
}
"""By model type, as for text."""

_PARTS: Mapping[str, tuple[str, str]] = {
    "qwen2_vl": ("qwen2_vl_text", "qwen2_vl_vision"),
    "qwen2_5_vl": ("qwen2_5_vl_text", "qwen2_5_vl_vision"),
    "qwen3_vl": ("qwen3_vl_text", "qwen3_vl_vision"),
    "internvl": ("qwen2", "internvl_vision"),
    "internvl_chat": ("internlm2", "intern_vit_6b"),
    "idefics3": ("llama", "idefics3_vision"),
    "smolvlm": ("llama", "smolvlm_vision"),
    "llava": ("llama", "clip_vision_model"),
    "llava_next": ("llama", "clip_vision_model"),
    "llava_onevision": ("qwen2", "siglip_vision_model"),
    "gemma3": ("gemma3_text", "siglip_vision_model"),
    "paligemma": ("gemma", "siglip_vision_model"),
    "minicpmv": ("qwen2", "siglip_vision_model"),
    "phi3_v": ("phi3", "clip_vision_model"),
    "tinyllava": ("stablelm", "siglip_vision_model"),
}
"""For each model type, the types of its language model and vision tower, where config.json does not name them."""
_WHOLE_VISION: Mapping[str, ConfigJson] = {
    "llava": _CLIP_LARGE,
    "llava_next": _CLIP_LARGE,
    "llava_onevision": {**_SIGLIP_SO400M, "num_hidden_layers": 26},
    # Its config.json has no vision_config, but names CLIP's large model with an input of 336 pixels.
    "phi3_v": _CLIP_LARGE,
}
"""For each model type whose config.json may lack `vision_config`, the vision tower that it then has."""
_SMALLER_INPUT: Mapping[str, ConfigJson] = {"paligemma": {"patch_size": 14}}


def with_defaults(settings: Mapping[str, Any]) -> ConfigJson:
    """Complete a config.json with the defaults of its classes. Its language model is then always in `text_config`.

    Args:
        settings: The content of config.json.

    Raises:
        TypeError: a part of the settings is not an object.
    """
    model_type = str(settings.get("model_type"))
    text_type, vision_type = _PARTS.get(model_type, ("", ""))
    text = settings.get("text_config") or settings.get("llm_config")
    if text is None:
        text = {name: value for name, value in settings.items() if name != "vision_config"}
    vision = settings.get("vision_config")
    text_defaults = TEXT_DEFAULTS.get(str(text.get("model_type")), TEXT_DEFAULTS.get(text_type, {}))
    completed = {**settings, "text_config": {**text_defaults, **text}}
    completed["text_config"]["tie_word_embeddings"] = _is_tied(settings, text, text_defaults)
    if vision is None:
        vision = _WHOLE_VISION.get(model_type)
    if vision is not None:
        named = f"{vision.get('model_type')}_vision", str(vision.get("model_type"))
        defaults = next((VISION_DEFAULTS[name] for name in (*named, vision_type) if name in VISION_DEFAULTS), {})
        completed["vision_config"] = {**defaults, **_SMALLER_INPUT.get(model_type, {}), **vision}
    return completed


def _is_tied(settings: Mapping[str, Any], text: Mapping[str, Any], text_defaults: Mapping[str, Any]) -> bool:
    """Whether the output head is tied to the input embeddings."""
    if "tie_word_embeddings" in text:
        return bool(text["tie_word_embeddings"])
    # The default of InternVL's own class is True, but its checkpoints have an output head.
    if "tie_word_embeddings" in settings and settings.get("model_type") != "internvl":
        return bool(settings["tie_word_embeddings"])
    return bool(text_defaults.get("tie_word_embeddings", False))
