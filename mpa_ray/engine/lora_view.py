"""One adapter of an engine, with the interface of a model."""

from __future__ import annotations

from dataclasses import dataclass, replace

from mpa_ray.engine.protocol import EncodedImage, Reply, Request, VisionLanguageModel
from mpa_ray.imaging.decode import ImageProblem


@dataclass(frozen=True)
class LoraView:
    """A model whose requests all use one adapter; it shares encoded images with the engine's other models."""

    model: VisionLanguageModel
    adapter: str

    @property
    def max_images_in_flight(self) -> int:
        return self.model.max_images_in_flight

    async def encode_image(self, image_id: str, content: bytes) -> EncodedImage | ImageProblem:
        return await self.model.encode_image(image_id, content)

    async def generate(self, image: EncodedImage, request: Request) -> Reply:
        assert request.adapter is None, "the request already names an adapter"
        return await self.model.generate(image, replace(request, adapter=self.adapter))

    def close(self) -> None:
        self.model.close()
