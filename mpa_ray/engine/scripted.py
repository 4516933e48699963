"""An engine without a model: its replies follow from the image's bytes, and it fails where it is told to."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import signal
import time
from pathlib import Path

from mpa_ray.config import SamplingConfig, ScriptedEngineConfig
from mpa_ray.engine.protocol import EncodedImage, EngineDied, JsonSchema, Reply, RequestRefused
from mpa_ray.imaging.decode import ImageProblem, prepare_apart
from mpa_ray.records import Reason

_QUESTION = re.compile(r"What is written on picture ([0-9a-f]{8})(?:, line \d+)?\?")
_BLOCK_SIZE = 32


class ScriptedEngine:
    """As a teacher it asks what is written on the picture; any scripted engine knows, but for its configured faults.

    Whether an image meets a fault follows from a hash of the image and the fault's name, so a run can be repeated.
    """

    def __init__(self, config: ScriptedEngineConfig, pixels: tuple[int, int], max_images_in_flight: int) -> None:
        self._config, self._pixels = config, pixels
        self.max_images_in_flight = max_images_in_flight
        self._seen: set[str] = set()

    async def encode_image(self, image_id: str, content: bytes) -> EncodedImage | ImageProblem:
        prepared = await prepare_apart(content, *self._pixels)
        return prepared if isinstance(prepared, ImageProblem) else EncodedImage(image_id, prepared.key)

    async def generate(
        self,
        image: EncodedImage,
        text: str,
        sampling: SamplingConfig,
        schema: JsonSchema | None = None,
        adapter: str | None = None,
    ) -> Reply:
        assert adapter is None, "a scripted engine has no weights to adapt"
        started = time.monotonic()
        self._meet_faults(image.image_id)
        if image.image_id in self._config.hang_on:
            await asyncio.Event().wait()
        if self._config.latency_s:
            await asyncio.sleep(self._config.latency_s)
        asked = _QUESTION.search(text)
        told, finish = (
            self._answer(image, asked[1]) if asked else self._annotate(image, sampling.seed, schema is not None)
        )
        cached = image.key in self._seen
        self._seen.add(image.key)
        words = len(text.split())
        return Reply(
            text=told,
            finish_reason=finish,
            num_prompt_tokens=_BLOCK_SIZE + words,
            num_cached_tokens=_BLOCK_SIZE if cached else 0,
            num_output_tokens=min(len(told.split()), sampling.max_new_tokens),
            image_end=_BLOCK_SIZE,
            mean_logprob=-0.1,
            elapsed_s=time.monotonic() - started,
        )

    def close(self) -> None:
        self._seen.clear()

    def _annotate(self, image: EncodedImage, seed: int, as_json: bool) -> tuple[str, str]:
        code = _digest(image.key)
        if self._meets("unparsable", self._config.unparsable_rate, code):
            return "I would rather describe the weather.", "stop"
        if self._meets("truncated", self._config.truncated_rate, code):
            return f"Question: What is written on picture {code[:8]}", "length"
        line = seed % self._config.num_questions
        place = f", line {line}" if line else ""
        question = f"What is written on picture {code[:8]}{place}?"
        if as_json:
            return json.dumps({"question": question, "answer": code[8:12]}), "stop"
        return f"Question: {question}\nAnswer: {code[8:12]}", "stop"

    def _answer(self, image: EncodedImage, picture: str) -> tuple[str, str]:
        code = _digest(image.key)
        astray = self._meets("inconsistent", self._config.inconsistent_rate, code) or self._meets(
            "wrong", self._config.wrong_rate, code
        )
        return (f"not {code[8:12]}" if astray or not code.startswith(picture) else code[8:12]), "stop"

    def _meets(self, fault: str, rate: float, code: str) -> bool:
        return int(_digest(f"{fault}:{code}")[:8], 16) < rate * 2**32

    def _meet_faults(self, image_id: str) -> None:
        if image_id in self._config.fail_on:
            raise RequestRefused(Reason.REQUEST_FAILED, "scripted to fail on this image")
        if image_id in self._config.die_on and self._first_death(image_id):
            raise EngineDied(f"scripted to die on {image_id}")
        if image_id in self._config.kill_on:
            os.kill(os.getpid(), signal.SIGKILL)

    def _first_death(self, image_id: str) -> bool:
        if self._config.die_once_in is None:
            return True
        mark = Path(self._config.die_once_in, _digest(image_id))
        if mark.exists():
            return False
        mark.touch()
        return True


def _digest(text: str) -> str:
    # The key starts with the file's hash; its pixel limits differ between models that must agree on the picture.
    return hashlib.sha256(text.split("-")[0].encode()).hexdigest()
