"""An engine without a model: its replies depend on the image's bytes, and it fails on the configured images."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from mpa_ray.config import ModelConfig, ObjectStoreConfig, ScriptedEngineConfig
from mpa_ray.engine.protocol import EncodedImage, EngineDied, Reply, Request, RequestRefused
from mpa_ray.imaging.decode import ImageProblem
from mpa_ray.imaging.prepare import prepare_in_thread
from mpa_ray.models.shared_engines import Adapter
from mpa_ray.records import Reason

_QUESTION = re.compile(r"What is written on picture ([0-9a-f]{8})(?:, line \d+)?\?")
_BLOCK_SIZE = 32
_HOSTILE_TEXT = (
    "",
    " \n",
    "\0",
    "\ud83d",
    "a \udce9 b",
    "\u202egnp\u200b",
    "NaN",
    "null",
    "0" * 5000,
    "<script>alert(1)</script>",
    "<|im_end|><image>",
    "<think>",
    "</think>",
    "?" * 1000,
    "[" * 100_000,
    '{"question": ' * 20_000,
    "word " * 20_000,
)
"""Replies that no engine should give."""


def start(
    model: ModelConfig,
    settings: ScriptedEngineConfig,
    max_images_in_flight: int,
    adapters: Mapping[str, Adapter],
    object_store: ObjectStoreConfig,  # noqa: ARG001
) -> ScriptedEngine:
    """Start a scripted engine without loading a model. Implements `EngineFactory`."""
    assert not adapters, "a scripted engine has no weights to adapt"
    if settings.kill_at_start:
        print("killed at the start, as configured", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    return ScriptedEngine(settings, model.pixel_limits, max_images_in_flight)


class ScriptedEngine:
    """A teacher that asks what is written on the picture, or a student that answers. Both fail at configured rates.

    Whether an image has a fault depends on a hash of the image and of the fault's name, so runs are repeatable.
    """

    def __init__(self, config: ScriptedEngineConfig, pixels: tuple[int, int, int], max_images_in_flight: int) -> None:
        self._config = config
        self._pixels = pixels
        self.max_images_in_flight = max_images_in_flight
        self._cached_keys: set[str] = set()

    async def encode_image(self, image_id: str, content: bytes) -> EncodedImage | ImageProblem:
        prepared = await prepare_in_thread(content, *self._pixels)
        return prepared if isinstance(prepared, ImageProblem) else EncodedImage(image_id, prepared.key)

    async def generate(self, image: EncodedImage, request: Request) -> Reply:
        assert request.adapter is None, "a scripted engine has no weights to adapt"
        started = time.monotonic()
        self._raise_faults(image.image_id)
        if image.image_id in self._config.hang_on:
            await asyncio.Event().wait()
        if self._config.latency_s:
            await asyncio.sleep(self._config.latency_s)
        question = _QUESTION.search(request.text)
        reply, finish_reason = self._answer(image, question[1]) if question else self._annotate(image, request)
        is_cached = image.key in self._cached_keys
        self._cached_keys.add(image.key)
        return Reply(
            text=self._with_reasoning(reply, request),
            finish_reason="length" if self._config.reasoning_form == "endless" else finish_reason,
            num_prompt_tokens=_BLOCK_SIZE + len(request.text.split()),
            num_cached_tokens=_BLOCK_SIZE if is_cached else 0,
            num_output_tokens=min(len(reply.split()), request.sampling.max_new_tokens),
            image_end=_BLOCK_SIZE,
            mean_logprob=-0.1,
            elapsed_s=time.monotonic() - started,
        )

    def close(self) -> None:
        self._cached_keys.clear()

    def _annotate(self, image: EncodedImage, request: Request) -> tuple[str, str]:
        code = _digest(image.key)
        if self._has_fault("unparsable", self._config.unparsable_rate, code):
            return "I would rather describe the weather.", "stop"
        if self._has_fault("truncated", self._config.truncated_rate, code):
            return f"Question: What is written on picture {code[:8]}", "length"
        if self._has_fault("hostile", self._config.hostile_rate, code):
            text = _hostile_text(code)
            # Half of these replies can be parsed, so that later phases process their questions and answers.
            pair = f"Question: What is written on picture {code[:8]}? {text[:100]}\nAnswer: {code[8:12]} {text[:100]}"
            return pair if int(code[-1], 16) < 8 else text, "stop"
        line = request.sampling.seed % self._config.num_questions
        place = f", line {line}" if line else ""
        question = f"What is written on picture {code[:8]}{place}?"
        if request.schema is not None:
            return json.dumps({"question": question, "answer": code[8:12]}), "stop"
        return f"Question: {question}\nAnswer: {code[8:12]}", "stop"

    def _answer(self, image: EncodedImage, picture: str) -> tuple[str, str]:
        code = _digest(image.key)
        if self._has_fault("hostile answer", self._config.hostile_rate, code):
            return _hostile_text(code), "stop"
        is_wrong = (
            not code.startswith(picture)
            or self._has_fault("inconsistent", self._config.inconsistent_rate, code)
            or self._has_fault("wrong", self._config.wrong_rate, code)
        )
        return f"not {code[8:12]}" if is_wrong else code[8:12], "stop"

    def _with_reasoning(self, reply: str, request: Request) -> str:
        # The reasoning depends on the prompt, so it differs between the teacher's two answers.
        reasoning = f"The text asks this: {_digest(request.text)[:8]}. Question: no? Answer: no."
        match self._config.reasoning_form:
            case "none":
                return reply
            case "tagged":
                return f"<think>{reasoning}</think>\n{reply}"
            case "opened":
                return f"{reasoning}</think>\n{reply}"
            case "endless":
                return f"<think>{reasoning}"

    def _has_fault(self, fault: str, rate: float, code: str) -> bool:
        return int(_digest(f"{fault}:{code}")[:8], 16) < rate * 2**32

    def _raise_faults(self, image_id: str) -> None:
        if image_id in self._config.fail_on:
            raise RequestRefused(Reason.REQUEST_FAILED, "scripted to fail on this image")
        if image_id in self._config.die_on and self._has_to_die(image_id):
            raise EngineDied(f"scripted to die on {image_id}")
        if image_id in self._config.kill_on:
            os.kill(os.getpid(), signal.SIGKILL)

    def _has_to_die(self, image_id: str) -> bool:
        if self._config.die_once_in is None:
            return True
        mark = Path(self._config.die_once_in, _digest(image_id))
        if mark.exists():
            return False
        mark.touch()
        return True


def _hostile_text(code: str) -> str:
    return _HOSTILE_TEXT[int(code[:8], 16) % len(_HOSTILE_TEXT)]


def _digest(text: str) -> str:
    # The key of an image is the hash of its file, a hyphen and the pixel limits. Only the hash is used, because teacher
    # and students may have different pixel limits.
    return hashlib.sha256(text.split("-")[0].encode()).hexdigest()
