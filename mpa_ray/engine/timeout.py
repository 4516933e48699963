"""An engine whose calls have a time limit."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import TypeVar

from mpa_ray.engine.protocol import EncodedImage, EngineDied, Reply, Request, VisionLanguageModel
from mpa_ray.imaging.decode import ImageProblem

T = TypeVar("T")


@dataclass(frozen=True)
class WithTimeout:
    """A model that raises `EngineDied` if a call takes too long: an engine that hangs counts as dead."""

    model: VisionLanguageModel
    request_timeout_s: float

    @property
    def max_images_in_flight(self) -> int:
        return self.model.max_images_in_flight

    async def encode_image(self, image_id: str, content: bytes) -> EncodedImage | ImageProblem:
        return await self._in_time(image_id, self.model.encode_image(image_id, content))

    async def generate(self, image: EncodedImage, request: Request) -> Reply:
        return await self._in_time(image.image_id, self.model.generate(image, request))

    def close(self) -> None:
        self.model.close()

    async def _in_time(self, image_id: str, result: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout(self.request_timeout_s):
                return await result
        except TimeoutError:
            limit = f"limits.request_timeout_s = {self.request_timeout_s:g} seconds"
            raise EngineDied(f"no reply about {image_id} in {limit}") from None
