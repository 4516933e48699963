"""An engine that counts its work, and whose replies can be stored."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from mpa_ray.engine.protocol import EncodedImage, Reply, Request, VisionLanguageModel
from mpa_ray.imaging.decode import ImageProblem
from mpa_ray.observability.usage import Load, Usage
from mpa_ray.textual import is_storable, readable


@dataclass(frozen=True)
class Instrumented:
    """A model that adds the seconds and tokens of each call to `usage` and shows its current work in `load`.

    An escape replaces each lone surrogate in a reply, because tokenizers and rows cannot hold it.
    """

    model: VisionLanguageModel
    usage: Usage
    load: Load

    @property
    def max_images_in_flight(self) -> int:
        return self.model.max_images_in_flight

    async def encode_image(self, image_id: str, content: bytes) -> EncodedImage | ImageProblem:
        started = time.monotonic()
        try:
            with self.load.one_more("num_rendering"):
                return await self.model.encode_image(image_id, content)
        finally:
            self.usage.render_s += time.monotonic() - started

    async def generate(self, image: EncodedImage, request: Request) -> Reply:
        started = time.monotonic()
        try:
            with self.load.one_more("num_in_engine"):
                reply = await self.model.generate(image, request)
        finally:
            self.usage.engine_s += time.monotonic() - started
        self.usage.num_prompt_tokens += reply.num_prompt_tokens
        self.usage.num_cached_tokens += reply.num_cached_tokens
        self.usage.num_output_tokens += reply.num_output_tokens
        return reply if is_storable(reply.text) else replace(reply, text=readable(reply.text))

    def close(self) -> None:
        self.model.close()
