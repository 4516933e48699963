"""An engine that is waited for only so long."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import TypeVar

from mpa_ray.config import SamplingConfig
from mpa_ray.engine.protocol import EncodedImage, EngineDied, JsonSchema, Reply, VisionLanguageModel
from mpa_ray.imaging.decode import ImageProblem

T = TypeVar("T")


@dataclass(frozen=True)
class WithTimeout:
    """A model whose every request must be answered in time: an engine that hangs cannot be told from a dead one."""

    model: VisionLanguageModel
    request_timeout_s: float

    @property
    def max_images_in_flight(self) -> int:
        return self.model.max_images_in_flight

    async def encode_image(self, image_id: str, content: bytes) -> EncodedImage | ImageProblem:
        return await self._in_time(image_id, self.model.encode_image(image_id, content))

    async def generate(
        self,
        image: EncodedImage,
        text: str,
        sampling: SamplingConfig,
        schema: JsonSchema | None = None,
        adapter: str | None = None,
    ) -> Reply:
        reply = self.model.generate(image, text, sampling, schema, adapter)
        return await self._in_time(image.image_id, reply)

    def close(self) -> None:
        self.model.close()

    async def _in_time(self, image_id: str, answer: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout(self.request_timeout_s):
                return await answer
        except TimeoutError:
            told = f"no reply about {image_id} in limits.request_timeout_s = {self.request_timeout_s:g} seconds"
            raise EngineDied(told) from None
