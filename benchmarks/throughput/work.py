"""The work that every row of the table does: models, images, prompts and lengths of replies."""

from __future__ import annotations

import io
import json
import os
import random
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from mpa_ray.config import resolve_path
from mpa_ray.demo.world import WorldSpec, paint, sample_scene
from mpa_ray.tasks.library import TASKS
from mpa_ray.tasks.parser import ReplyError, parse_reply

TASK = TASKS["demo_world"]
QUESTION = "How many objects are there?"
"""The question that replaces a missing one; a model with random weights never writes any."""


@dataclass(frozen=True)
class Work:
    """The work of a row."""

    name: str
    teacher: str
    student: str | None
    """None measures the teacher's passes alone."""
    images: str
    """The folder of the image files."""
    num_images: int
    repetitions: int
    image_size: int
    """Side of the square images in pixels."""
    first_tokens: int
    """Length limit of an annotation; with random weights every annotation has this length."""
    second_tokens: int
    """Length limit of an answer."""
    random_weights: bool
    dtype: str
    max_num_seqs: int
    max_model_len: int
    shard_size: int

    @property
    def max_images_in_flight(self) -> int:
        return round(1.1 * self.max_num_seqs)

    def files(self) -> list[Path]:
        return sorted(Path(self.images).iterdir())

    def question_of(self, reply: str) -> str:
        """The question that an annotation asks, or `QUESTION`."""
        pairs = parse_reply(reply)
        return QUESTION if self.random_weights or isinstance(pairs, ReplyError) else pairs[0].question

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def load(cls, path: str) -> Work:
        return cls(**json.loads(Path(path).read_text()))


@dataclass
class Timings:
    """The rates of a row, one for each repetition."""

    teacher_images_per_s: list[float]
    student_images_per_s: list[float]
    num_uncached_image_tokens: int | None = None
    """In all second passes of the teacher together; None if the row cannot count them."""
    second_pass_share: float | None = None
    """The second pass's share of the teacher's summed request times, which include waiting for other requests."""
    first_pass_images_per_s: list[float] | None = None
    """Rates without second passes."""
    pairs_per_image: float | None = None

    def save(self, path: str) -> None:
        Path(path).write_text(json.dumps(asdict(self)))


def rates(began: float, done: list[tuple[float, int]], num_images: int) -> list[float]:
    """Images per second of each repetition.

    Repetitions follow each other without a pause, so that the engine is as full between them as within.

    Args:
        began: When the first repetition began.
        done: Moments, and how many images were finished at each.
        num_images: The number of images of a repetition.
    """
    repetitions, start, count = [], began, 0
    for at, images in sorted(done):
        count += images
        if count >= num_images:
            repetitions.append(count / (at - start))
            start, count = at, 0
    return repetitions


def steady_rates(done: list[tuple[float, int]], num_images: int, num_in_flight: int) -> list[float]:
    """As `rates`, without the images that were finished while the engine filled or emptied."""
    full = sorted(done)[num_in_flight - 1 :]
    return rates(full[0][0], full[1:], num_images)


def bundled(scratch: Path, num_images: int, repetitions: int) -> Work:
    """The bundled teacher and student with images of their world."""
    return Work(
        "bundled",
        resolve_path("bundled:demo/models/teacher"),
        resolve_path("bundled:demo/models/student"),
        str(paint_images(scratch / "bundled-images", num_images, 112)),
        num_images,
        repetitions,
        112,
        first_tokens=48,
        second_tokens=32,
        random_weights=False,
        dtype="float32",
        max_num_seqs=64,
        max_model_len=512,
        shard_size=64,
    )


def larger(scratch: Path, num_images: int, repetitions: int) -> Work:
    """A model with 60 M random parameters and images of 448 x 448 pixels, 256 tokens, so that computation dominates.

    The student has half the layers.
    """
    teacher, student = scratch / "larger-teacher", scratch / "larger-student"
    build_larger_model(teacher, num_layers=8)
    build_larger_model(student, num_layers=4)
    return Work(
        "larger",
        str(teacher),
        str(student),
        str(paint_images(scratch / "larger-images", num_images, 448)),
        num_images,
        repetitions,
        448,
        first_tokens=8,
        second_tokens=4,
        random_weights=True,
        dtype="bfloat16",
        max_num_seqs=16,
        max_model_len=1024,
        shard_size=16,
    )


def paint_images(folder: Path, num_images: int, size: int) -> Path:
    """Write JPEGs of that many random scenes; returns the folder."""
    folder.mkdir()
    rng = random.Random(0)
    for number in range(num_images):
        scene = paint(sample_scene(WorldSpec(), rng))
        buffer = io.BytesIO()
        scene.resize((size, size), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=95)
        (folder / f"{number:05d}.jpg").write_bytes(buffer.getvalue())
    return folder


def build_larger_model(folder: Path, num_layers: int) -> None:
    import torch
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    from mpa_ray.demo.architectures import build_qwen2_vl, build_qwen2_vl_processor, build_tokenizer

    tokenizer = build_tokenizer(WorldSpec())
    small: dict[str, Any] = build_qwen2_vl(tokenizer).config.to_dict()
    torch.manual_seed(0)
    config = Qwen2VLConfig(
        text_config=small["text_config"]
        | {
            "hidden_size": 512,
            "intermediate_size": 2048,
            "num_hidden_layers": num_layers,
            "num_attention_heads": 8,
            "num_key_value_heads": 8,
            "layer_types": ["full_attention"] * num_layers,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [8, 12, 12]},
        },
        vision_config=small["vision_config"]
        | {
            "depth": num_layers,
            "embed_dim": 512,
            "hidden_size": 512,
            "num_heads": 8,
            "mlp_ratio": 4,
        },
        **{name: small[name] for name in small if name.endswith("_token_id")},
        tie_word_embeddings=True,
    )
    model = Qwen2VLForConditionalGeneration(config)
    with torch.no_grad():
        # The token that ends a reply is never the likeliest, so every reply has its full length.
        model.get_input_embeddings().weight[tokenizer.eos_token_id] = 0
    model.to(torch.bfloat16).save_pretrained(folder)
    build_qwen2_vl_processor(tokenizer, image_size=448).save_pretrained(folder)


def bind_cores(num_cores: int | None = None) -> None:
    """Make vLLM's CPU engine use this many cores; None is all, where its default leaves one free."""
    cores = sorted(os.sched_getaffinity(0))[:num_cores]
    os.environ.update(
        {
            "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_LOGGING_LEVEL": "ERROR",
        }
    )
