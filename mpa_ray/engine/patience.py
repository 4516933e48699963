"""An engine that is waited for only so long."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from mpa_ray.config import SamplingConfig
from mpa_ray.engine.protocol import EngineDied, Reply, VisionLanguageModel, VisualPrompt


@dataclass(frozen=True)
class WithTimeout:
    """A model whose every request must be answered in time: an engine that hangs cannot be told from a dead one."""

    model: VisionLanguageModel
    request_timeout_s: float

    @property
    def max_images_in_flight(self) -> int:
        return self.model.max_images_in_flight

    async def generate(self, prompt: VisualPrompt, sampling: SamplingConfig) -> Reply:
        try:
            async with asyncio.timeout(self.request_timeout_s):
                return await self.model.generate(prompt, sampling)
        except TimeoutError:
            told = f"no reply about {prompt.image_id} in limits.request_timeout_s = {self.request_timeout_s:g} seconds"
            raise EngineDied(told) from None

    def close(self) -> None:
        self.model.close()
