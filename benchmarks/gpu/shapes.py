"""Qwen2-VL checkpoints with random weights, and images with questions, made on the spot.

Speed does not depend on the values of weights. Replies and losses are meaningless.
"""

from __future__ import annotations

import json
import multiprocessing
import random
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.measuring import num_cores
from mpa_ray.demo.world import Question, Scene, WorldSpec, paint, sample_question, sample_scene

PATCH_PX = 28
"""Side in pixels of the square that becomes one image token."""


@dataclass(frozen=True)
class Shape:
    """The sizes of one Qwen2-VL."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    vocab_size: int
    tie_word_embeddings: bool
    mrope_section: tuple[int, int, int]
    vision_depth: int
    vision_width: int
    num_vision_heads: int

    @property
    def first_special_token(self) -> int:
        """The id of Qwen2-VL's first special token; in a small vocabulary they come last."""
        return min(151643, self.vocab_size - 64)


SHAPES = {
    "2b": Shape(1536, 8960, 28, 12, 2, 151936, True, (16, 24, 24), 32, 1280, 16),
    "7b": Shape(3584, 18944, 28, 28, 4, 152064, False, (16, 24, 24), 32, 1280, 16),
    "tiny": Shape(128, 256, 2, 2, 2, 2048, True, (8, 12, 12), 2, 64, 2),
}
"""The published shapes of Qwen2-VL-2B and 7B, and a small one for dry runs."""

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
"""In the order of Qwen2-VL's ids."""


# --- checkpoints -----------------------------------------------------------------------------------------------------


def build_checkpoint(shape: str, folder: Path, max_side_px: int, with_weights: bool = True) -> None:
    """Write a checkpoint.

    Args:
        shape: A name in `SHAPES`.
        folder: The checkpoint's folder, which is created.
        max_side_px: The processor scales larger square images down to this side.
        with_weights: False leaves out the weights, for vLLM to make random ones itself (`load_format: dummy`).
    """
    import torch

    from mpa_ray.demo.architectures import build_qwen2_vl_processor

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer(shape)
    config = build_config(shape, tokenizer)
    config.architectures = ["Qwen2VLForConditionalGeneration"]
    if with_weights:
        build_model(config).save_pretrained(folder)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    else:
        config.dtype = torch.bfloat16
        config.save_pretrained(folder)
    build_qwen2_vl_processor(tokenizer, image_size=max_side_px).save_pretrained(folder)


def build_tokenizer(shape: str) -> Any:
    """The tokenizer of the bundled world, filled with unused tokens up to the size of the shape's vocabulary.

    Special tokens have Qwen2-VL's ids if the vocabulary is large enough.
    """
    from tokenizers import Tokenizer
    from transformers import Qwen2TokenizerFast

    from mpa_ray.demo.architectures import build_tokenizer as build_world_tokenizer

    content = json.loads(build_world_tokenizer(WorldSpec()).backend_tokenizer.to_str())
    first_special = SHAPES[shape].first_special_token
    content["model"]["vocab"] = _grown_vocabulary(content["model"]["vocab"], first_special)
    content["added_tokens"] = []
    tokenizer = Qwen2TokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(content)))
    ends = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    others = [token for token in SPECIAL_TOKENS if token not in ends.values()]
    tokenizer.add_special_tokens({**ends, "additional_special_tokens": others})
    tokenizer.model_max_length = 32768
    ids = tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS))
    assert ids == list(range(first_special, first_special + len(SPECIAL_TOKENS)))
    return tokenizer


def _grown_vocabulary(vocabulary: dict[str, int], size: int) -> dict[str, int]:
    """The tokens in their order, unused tokens up to `size`, then the special tokens."""
    tokens = [token for token in sorted(vocabulary, key=vocabulary.__getitem__) if token not in SPECIAL_TOKENS]
    tokens += [f"unused{number}" for number in range(len(tokens), size)]
    return {token: number for number, token in enumerate([*tokens, *SPECIAL_TOKENS])}


def build_config(shape: str, tokenizer: Any) -> Any:
    """The shape's `Qwen2VLConfig`."""
    from transformers import Qwen2VLConfig

    sizes = SHAPES[shape]
    token = tokenizer.convert_tokens_to_ids
    rope = {"rope_type": "default", "rope_theta": 1_000_000.0, "mrope_section": list(sizes.mrope_section)}
    return Qwen2VLConfig(
        text_config={
            "hidden_size": sizes.hidden_size,
            "intermediate_size": sizes.intermediate_size,
            "num_hidden_layers": sizes.num_layers,
            "num_attention_heads": sizes.num_heads,
            "num_key_value_heads": sizes.num_kv_heads,
            "vocab_size": sizes.vocab_size,
            "max_position_embeddings": 32768,
            "rms_norm_eps": 1e-6,
            "layer_types": ["full_attention"] * sizes.num_layers,
            "rope_parameters": rope,
            "bos_token_id": token("<|endoftext|>"),
            "eos_token_id": token("<|im_end|>"),
            "pad_token_id": token("<|endoftext|>"),
            "tie_word_embeddings": sizes.tie_word_embeddings,
        },
        vision_config={
            "depth": sizes.vision_depth,
            "embed_dim": sizes.vision_width,
            "hidden_size": sizes.hidden_size,
            "num_heads": sizes.num_vision_heads,
            "mlp_ratio": 4,
            "patch_size": PATCH_PX // 2,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=sizes.tie_word_embeddings,
    )


def build_model(config: Any) -> Any:
    """A model with random weights in bfloat16, on the GPU if there is one; a CPU needs a minute for the 2B shape."""
    import torch
    from transformers import Qwen2VLForConditionalGeneration

    torch.manual_seed(0)
    default_dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
            return Qwen2VLForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(default_dtype)


# --- images ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PaintedImage:
    """A JPEG of a random scene, with a question about it."""

    path: str
    side_px: int
    question: str
    answer: str


def paint_images(folder: Path, sides_px: Sequence[int], count: int) -> list[PaintedImage]:
    """Paint `count` images, which have the sides in turn, with one process per core."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [str(folder / f"{number:05d}.jpg") for number in range(count)]
    sides = [sides_px[number % len(sides_px)] for number in range(count)]
    num_processes = min(num_cores(), -(-count // 64))
    if num_processes == 1:
        return list(map(_paint_image, paths, range(count), sides))
    with ProcessPoolExecutor(num_processes, multiprocessing.get_context("spawn")) as pool:
        return list(pool.map(_paint_image, paths, range(count), sides, chunksize=8))


def _paint_image(path: str, seed: int, side_px: int) -> PaintedImage:
    from PIL import Image

    scene, question = _scene_with_question(random.Random(seed))
    paint(scene).resize((side_px, side_px), Image.Resampling.BICUBIC).save(path, "JPEG", quality=92)
    return PaintedImage(path, side_px, question.question, question.answer)


def _scene_with_question(draws: random.Random) -> tuple[Scene, Question]:
    while True:
        scene = sample_scene(WorldSpec(), draws)
        question = sample_question(scene, draws)
        if question is not None:
            return scene, question
