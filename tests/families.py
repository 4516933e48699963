"""A tiny checkpoint with random weights of every family of students, built from its configuration."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import AddedToken
from transformers import (
    AutoTokenizer,
    GotOcr2ImageProcessor,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVideoProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)

from mpa_ray.config import resolve_path
from mpa_ray.models.chat_template import load_processor

HIDDEN, HEADS, LAYERS = 64, 2, 2
GRIDS = [[112, 112], [112, 224], [224, 112]]
TEXT = {
    "hidden_size": HIDDEN,
    "intermediate_size": 96,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": HEADS,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
}
_CHATML = (
    "{%% for message in messages %%}<|im_start|>{{ message['role'] }}\n"
    "{%% for part in message['content'] %%}"
    "{%% if part['type'] == 'image' %%}%s{%% else %%}{{ part['text'] }}{%% endif %%}"
    "{%% endfor %%}<|im_end|>\n{%% endfor %%}{%% if add_generation_prompt %%}<|im_start|>assistant\n{%% endif %%}"
)
_QWEN = _CHATML % "<|vision_start|><|image_pad|><|vision_end|>"
_SMOL = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'][0]['type'] == 'image' %}:{% else %}: {% endif %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)


def tokenizer(*tokens: str, **named: str) -> Any:
    """The bundled student's, with further special tokens, some of them by the names that a processor asks for."""
    start = resolve_path("bundled:demo/models/student")
    bundled = (
        AutoTokenizer.from_pretrained(start, extra_special_tokens=named)
        if named
        else AutoTokenizer.from_pretrained(start)
    )
    bundled.add_tokens([AddedToken(token, special=True) for token in (*tokens, *named.values())], special_tokens=True)
    return bundled


def build(family: str, folder: Path) -> Path:
    """Write the checkpoint; its weights are drawn from a fixed seed."""
    return write(FAMILIES[family], folder)


def write(make: Callable[[], tuple[Any, Any]], folder: Path) -> Path:
    """Write a checkpoint of a model and a processor; its weights are drawn from a fixed seed."""
    torch.manual_seed(0)
    model, processor = make()
    with torch.no_grad():
        for name, weights in model.named_parameters():
            # Larger than at the start of training, so that answers depend on what is seen.
            if weights.dim() > 1 and "norm" not in name:
                weights.normal_(std=0.2 if "embed" in name or "lm_head" in name else weights.shape[-1] ** -0.5)
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def with_limits(processor: Any, limits: tuple[int, int], folder: Path) -> Any:
    """Another copy of a processor, whose own limits are the given ones."""
    processor.save_pretrained(folder)
    copy = load_processor(str(folder))
    copy.image_processor.size = {"shortest_edge": limits[0], "longest_edge": limits[1]}
    return copy


@cache
def picture(size: tuple[int, int]) -> Image.Image:
    """A picture of noise: small differences in how it is scaled change many of its pixels."""
    return Image.fromarray(np.random.default_rng(size).integers(0, 256, (size[1], size[0], 3), np.uint8))


@cache
def file_of(size: tuple[int, int]) -> bytes:
    """The picture of a size as an image file."""
    buffer = io.BytesIO()
    picture(size).save(buffer, "PPM")
    return buffer.getvalue()


def _qwen2_vl() -> tuple[Any, Any]:
    text = tokenizer()
    config = Qwen2VLConfig(
        text_config={**TEXT, "vocab_size": len(text), "rope_parameters": _rope()},
        vision_config={"depth": 2, "embed_dim": HIDDEN, "hidden_size": HIDDEN, "num_heads": HEADS, "mlp_ratio": 2},
        **_qwen_tokens(text),
    )
    processor = Qwen2VLProcessor(
        Qwen2VLImageProcessor(**_sizes(28)), text, Qwen2VLVideoProcessor(), chat_template=_QWEN
    )
    return Qwen2VLForConditionalGeneration(config), processor


def _qwen2_5_vl() -> tuple[Any, Any]:
    text = tokenizer()
    config = Qwen2_5_VLConfig(
        text_config={**TEXT, "vocab_size": len(text), "rope_parameters": _rope()},
        vision_config={
            "depth": 2,
            "hidden_size": HIDDEN,
            "out_hidden_size": HIDDEN,
            "num_heads": HEADS,
            "intermediate_size": 96,
            "fullatt_block_indexes": [1],
        },
        **_qwen_tokens(text),
    )
    processor = Qwen2_5_VLProcessor(
        Qwen2VLImageProcessor(**_sizes(28)), text, Qwen2VLVideoProcessor(), chat_template=_QWEN
    )
    return Qwen2_5_VLForConditionalGeneration(config), processor


def _qwen3_vl() -> tuple[Any, Any]:
    text = tokenizer()
    config = Qwen3VLConfig(
        text_config={
            **TEXT,
            "head_dim": 32,
            "vocab_size": len(text),
            "rope_parameters": {**_rope(), "mrope_interleaved": True},
        },
        vision_config={
            "depth": 2,
            "hidden_size": HIDDEN,
            "out_hidden_size": HIDDEN,
            "num_heads": HEADS,
            "intermediate_size": 96,
            "deepstack_visual_indexes": [0],
            "num_position_embeddings": 64,
        },
        **_qwen_tokens(text),
    )
    images = Qwen2VLImageProcessor(patch_size=16, image_mean=[0.5] * 3, image_std=[0.5] * 3, **_sizes(32))
    processor = Qwen3VLProcessor(images, text, Qwen3VLVideoProcessor(), chat_template=_QWEN)
    return Qwen3VLForConditionalGeneration(config), processor


def _smolvlm() -> tuple[Any, Any]:
    text = tokenizer("<fake_token_around_image>", "<global-img>", "<image>", "<end_of_utterance>", "<video>")
    text.eos_token = "<end_of_utterance>"
    config = SmolVLMConfig(
        text_config={**TEXT, "model_type": "llama", "vocab_size": len(text), "pad_token_id": text.pad_token_id},
        vision_config={
            "hidden_size": HIDDEN,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": HEADS,
            "image_size": 128,
            "patch_size": 16,
        },
        image_token_id=text.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        pad_token_id=text.pad_token_id,
    )
    images = SmolVLMImageProcessor(
        size={"longest_edge": 128}, max_image_size={"longest_edge": 128}, do_image_splitting=False
    )
    processor = SmolVLMProcessor(images, text, SmolVLMVideoProcessor(), image_seq_len=16, chat_template=_SMOL)
    return SmolVLMForConditionalGeneration(config), processor


def internvl(side: int = 112) -> tuple[Any, Any]:
    """A tiny InternVL whose tiles have this side, and its processor."""
    text = tokenizer(
        start_image_token="<img>", end_image_token="</img>", context_image_token="<IMG_CONTEXT>", video_token="<video>"
    )
    num_tokens = (side // 28) ** 2
    config = InternVLConfig(
        text_config={**TEXT, "model_type": "qwen2", "vocab_size": len(text), "max_position_embeddings": 8192},
        vision_config={
            "hidden_size": HIDDEN,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": HEADS,
            "image_size": [side, side],
            "patch_size": [14, 14],
        },
        image_token_id=text.convert_tokens_to_ids("<IMG_CONTEXT>"),
        downsample_ratio=0.5,
        image_seq_length=num_tokens,
    )
    images = GotOcr2ImageProcessor(size={"height": side, "width": side}, crop_to_patches=False)
    processor = InternVLProcessor(
        images, text, InternVLVideoProcessor(), image_seq_length=num_tokens, chat_template=_CHATML % "<IMG_CONTEXT>"
    )
    return InternVLForConditionalGeneration(config), processor


def _llava_onevision() -> tuple[Any, Any]:
    text = tokenizer("<image>", "<video>")
    config = LlavaOnevisionConfig(
        text_config={**TEXT, "model_type": "qwen2", "vocab_size": len(text)},
        vision_config={
            "model_type": "siglip_vision_model",
            "hidden_size": HIDDEN,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": HEADS,
            "image_size": 112,
            "patch_size": 14,
            "vision_use_head": False,
        },
        image_token_index=text.convert_tokens_to_ids("<image>"),
        video_token_index=text.convert_tokens_to_ids("<video>"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        image_grid_pinpoints=GRIDS,
    )
    images = LlavaOnevisionImageProcessor(size={"height": 112, "width": 112}, image_grid_pinpoints=GRIDS)
    processor = LlavaOnevisionProcessor(
        images,
        text,
        LlavaOnevisionVideoProcessor(),
        num_image_tokens=64,
        vision_feature_select_strategy="full",
        chat_template=_CHATML % "<image>",
    )
    return LlavaOnevisionForConditionalGeneration(config), processor


def _rope() -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]}


def _sizes(unit: int) -> dict[str, Any]:
    return {"min_pixels": 4 * unit * unit, "max_pixels": 64 * unit * unit}


def _qwen_tokens(text: Any) -> dict[str, int]:
    return {
        "image_token_id": text.convert_tokens_to_ids("<|image_pad|>"),
        "video_token_id": text.convert_tokens_to_ids("<|video_pad|>"),
        "vision_start_token_id": text.convert_tokens_to_ids("<|vision_start|>"),
        "vision_end_token_id": text.convert_tokens_to_ids("<|vision_end|>"),
    }


FAMILIES: dict[str, Callable[[], tuple[Any, Any]]] = {
    "qwen2_vl": _qwen2_vl,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
    "smolvlm": _smolvlm,
    "internvl": internvl,
    "llava_onevision": _llava_onevision,
}
