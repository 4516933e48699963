"""The architectures of the bundled models (about 2 M parameters each): models, processors and their inputs."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GotOcr2ImageProcessor,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVideoProcessor,
    Qwen2TokenizerFast,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)

from mpa_ray.demo.world import WorldSpec, describe, questions, sample_scene
from mpa_ray.tasks.library import TASKS
from mpa_ray.tasks.task import SYSTEM_PROMPT

TASK = TASKS["demo_world"]
DESCRIBE_PROMPT = "Describe the whole image."
PATCH, MERGE, TEMPORAL = 14, 2, 2
"""The side of a patch in pixels, the side of an image token in patches, and the number of video frames in a patch."""
IMAGE_MEAN, IMAGE_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_ENDS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_QWEN_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>")
_INTERN_TOKENS = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}
_CHAT_TEMPLATE = (
    "{%% for message in messages %%}<|im_start|>{{ message['role'] }}\n"
    "{%% if message['content'] is string %%}{{ message['content'] }}{%% else %%}"
    "{%% for part in message['content'] %%}{%% if part['type'] == 'image' %%}%s"
    "{%% elif part['type'] == 'text' %%}{{ part['text'] }}{%% endif %%}{%% endfor %%}{%% endif %%}<|im_end|>\n"
    "{%% endfor %%}{%% if add_generation_prompt %%}<|im_start|>assistant\n{%% endif %%}"
)
_QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LANGUAGE = {
    "hidden_size": 160,
    "intermediate_size": 416,
    "num_hidden_layers": 4,
    "num_attention_heads": 5,
    "num_key_value_heads": 5,
    "max_position_embeddings": 4096,
}
"""The head size of 32 is the smallest that vLLM's attention on CPUs supports."""


@dataclass(frozen=True)
class WorldArchitecture:
    """An architecture, in the small size that the bundled world needs."""

    build: Callable[[WorldSpec], tuple[Any, Any]]
    """Makes a model with new weights, and its processor."""
    image_text: tuple[str, str, str]
    """The tokens of an image in a prompt: the start, a token that is repeated for every 28 x 28 pixels, and the end."""
    inputs: Callable[[NDArray[np.uint8], torch.Tensor, int], dict[str, torch.Tensor]]
    """Makes the inputs that the processor would make, except the token ids. Takes images (batch, side, side, 3), token
    ids (batch, length) and the id of the image token."""

    def image(self, spec: WorldSpec) -> str:
        start, token, end = self.image_text
        return start + token * (spec.image_size // PATCH // MERGE) ** 2 + end


def build_tokenizer(
    spec: WorldSpec, tokens: Iterable[str] = _QWEN_TOKENS, named: dict[str, str] | None = None, vocab_size: int = 640
) -> Qwen2TokenizerFast:
    """Train a byte-level BPE on sentences of the world.

    Args:
        spec: The world.
        tokens: Special tokens of the architecture, in addition to those that end texts and turns.
        named: Special tokens that the architecture's processor looks up by name: the token for each name.
        vocab_size: The size of the vocabulary, including special tokens.
    """
    special = (*_ENDS, *tokens, *(named or {}).values())
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_QWEN_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    rng = random.Random(0)
    corpus = [f"system\n{SYSTEM_PROMPT}", "user\n", "assistant\n", TASK.annotation_prompt(), DESCRIBE_PROMPT] * 50
    for _ in range(1500):
        scene = sample_scene(spec, rng)
        corpus.append(describe(scene))
        instruction = TASK.answer_text("").strip()
        corpus += [f"Question: {q.question}\nAnswer: {q.answer}\n{instruction}" for q in questions(scene)]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(special), initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(corpus, trainer)
    fast = Qwen2TokenizerFast(tokenizer_object=tokenizer, extra_special_tokens=named or {})
    fast.add_special_tokens(
        {
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "additional_special_tokens": [t for t in special if t not in ("<|im_end|>", "<|endoftext|>")],
        }
    )
    fast.model_max_length = 4096
    return fast


# --- Qwen2-VL --------------------------------------------------------------------------------------------------------


def build_qwen2_vl_processor(tokenizer: Qwen2TokenizerFast, image_size: int) -> Qwen2VLProcessor:
    """Make a processor that scales images to an area between 56 x 56 and `image_size` x `image_size` pixels."""
    tokenizer.chat_template = _CHAT_TEMPLATE % "<|vision_start|><|image_pad|><|vision_end|>"
    size = {"shortest_edge": 56 * 56, "longest_edge": image_size * image_size}
    return Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=size, patch_size=PATCH, merge_size=MERGE),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(size=size, patch_size=PATCH, merge_size=MERGE),
        chat_template=tokenizer.chat_template,
    )


def build_qwen2_vl(tokenizer: Qwen2TokenizerFast) -> Qwen2VLForConditionalGeneration:
    """Make a model with new weights.

    M-RoPE divides the frequencies between time, rows and columns, and gives columns the lowest ones. The heads of this
    model are small. With the division of the large models, two columns of a 4 x 4 grid would differ by at most 0.01
    rad, and the model could not tell left from right. If all frequencies had a low base instead, attention over long
    distances would fail. So time and rows get only a few high frequencies, and columns get all others.
    """
    token = tokenizer.convert_tokens_to_ids
    config = Qwen2VLConfig(
        text_config=_LANGUAGE
        | {
            "vocab_size": len(tokenizer),
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0, "mrope_section": [1, 3, 12]},
            "bos_token_id": token("<|endoftext|>"),
            "eos_token_id": token("<|im_end|>"),
            "pad_token_id": token("<|endoftext|>"),
            "tie_word_embeddings": True,
        },
        vision_config={
            "depth": 2,
            "embed_dim": 128,
            "hidden_size": _LANGUAGE["hidden_size"],
            "num_heads": 4,
            "mlp_ratio": 3,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": TEMPORAL,
        },
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    return Qwen2VLForConditionalGeneration(config)


def _qwen2_vl(spec: WorldSpec) -> tuple[Any, Any]:
    tokenizer = build_tokenizer(spec)
    return build_qwen2_vl(tokenizer), build_qwen2_vl_processor(tokenizer, spec.image_size)


def _qwen2_vl_inputs(pixels: NDArray[np.uint8], ids: torch.Tensor, image_token_id: int) -> dict[str, torch.Tensor]:
    """Make patches (batch x patches, 1176) in the order of the image tokens. Each image becomes two equal frames."""
    batch, side = pixels.shape[0], pixels.shape[1]
    grid = side // PATCH // MERGE
    split = _normalized(pixels).reshape(batch, grid, MERGE, PATCH, grid, MERGE, PATCH, 3)
    ordered = split.transpose(0, 1, 4, 2, 5, 7, 3, 6)
    doubled = np.repeat(ordered[:, :, :, :, :, :, None], TEMPORAL, axis=6)
    return {
        "pixel_values": torch.from_numpy(doubled.reshape(-1, 3 * TEMPORAL * PATCH * PATCH)),
        "image_grid_thw": torch.tensor([[1, side // PATCH, side // PATCH]] * batch),
        "mm_token_type_ids": (ids == image_token_id).int(),
    }


# --- InternVL --------------------------------------------------------------------------------------------------------


def _internvl(spec: WorldSpec) -> tuple[Any, Any]:
    """Make InternVL as transformers defines it (`-hf`): tiles of `image_size`, a class token, absolute positions."""
    tokenizer = build_tokenizer(spec, (), _INTERN_TOKENS)
    tokenizer.chat_template = _CHAT_TEMPLATE % "<IMG_CONTEXT>"
    token = tokenizer.convert_tokens_to_ids
    num_tokens = (spec.image_size // PATCH // MERGE) ** 2
    config = InternVLConfig(
        text_config=_LANGUAGE
        | {
            "model_type": "qwen2",
            "vocab_size": len(tokenizer),
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
            "bos_token_id": token("<|endoftext|>"),
            "eos_token_id": token("<|im_end|>"),
            "pad_token_id": token("<|endoftext|>"),
            "tie_word_embeddings": True,
        },
        vision_config={
            "num_hidden_layers": 2,
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_attention_heads": 4,
            "image_size": [spec.image_size] * 2,
            "patch_size": [PATCH] * 2,
            "attention_bias": True,
            # Large models begin with 0.1, which keeps many layers stable. A model with two layers learns faster with 1.
            "layer_scale_init_value": 1.0,
        },
        image_token_id=token("<IMG_CONTEXT>"),
        downsample_ratio=1 / MERGE,
        image_seq_length=num_tokens,
        tie_word_embeddings=True,
    )
    size = {"height": spec.image_size, "width": spec.image_size}
    processor = InternVLProcessor(
        GotOcr2ImageProcessor(size=size, crop_to_patches=False),
        tokenizer,
        InternVLVideoProcessor(size=size),
        image_seq_length=num_tokens,
        chat_template=tokenizer.chat_template,
    )
    return InternVLForConditionalGeneration(config), processor


def _internvl_inputs(pixels: NDArray[np.uint8], ids: torch.Tensor, image_token_id: int) -> dict[str, torch.Tensor]:  # noqa: ARG001
    return {"pixel_values": torch.from_numpy(_normalized(pixels).transpose(0, 3, 1, 2).copy())}


def _normalized(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    scaled: NDArray[np.float32] = ((pixels / 255 - np.asarray(IMAGE_MEAN)) / np.asarray(IMAGE_STD)).astype(np.float32)
    return scaled


QWEN2_VL = WorldArchitecture(_qwen2_vl, ("<|vision_start|>", "<|image_pad|>", "<|vision_end|>"), _qwen2_vl_inputs)
INTERNVL = WorldArchitecture(_internvl, ("<img>", "<IMG_CONTEXT>", "</img>"), _internvl_inputs)
