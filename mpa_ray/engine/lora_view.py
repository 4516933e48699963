"""An engine's model with one of the adapters that the engine has taken up."""

from __future__ import annotations

from dataclasses import dataclass

from mpa_ray.config import SamplingConfig
from mpa_ray.engine.protocol import EncodedImage, JsonSchema, Reply, VisionLanguageModel
from mpa_ray.imaging.decode import ImageProblem


@dataclass(frozen=True)
class LoraView:
    """A model that answers through an adapter; what it looks at, the engine's other models have seen, too."""

    model: VisionLanguageModel
    adapter: str

    @property
    def max_images_in_flight(self) -> int:
        return self.model.max_images_in_flight

    async def encode_image(self, image_id: str, content: bytes) -> EncodedImage | ImageProblem:
        return await self.model.encode_image(image_id, content)

    async def generate(
        self,
        image: EncodedImage,
        text: str,
        sampling: SamplingConfig,
        schema: JsonSchema | None = None,
        adapter: str | None = None,
    ) -> Reply:
        assert adapter is None
        return await self.model.generate(image, text, sampling, schema, self.adapter)

    def close(self) -> None:
        self.model.close()
