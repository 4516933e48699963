"""Several models of one engine asked in one visit to each image."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Generic

from mpa_ray.engine.lora_view import LoraView
from mpa_ray.engine.protocol import VisionLanguageModel
from mpa_ray.records import OfModel, RowT
from mpa_ray.stages.image_work import ImageWork, OutT, Stage, encode_work, first_alone


@dataclass(frozen=True)
class MultiModel(Generic[RowT, OutT]):
    """The same rows through a stage for each model; the image is read, decoded and seen by the vision tower once."""

    model: VisionLanguageModel
    stages: Mapping[str, Stage[RowT, OutT]]
    """By the models' names."""

    async def visit(self, work: ImageWork[RowT]) -> list[OfModel[OutT]]:
        """What each stage gives, model by model."""
        if isinstance(work.content, bytes):
            work = replace(work, content=await encode_work(work, self.model))
        visits = await first_alone([partial(stage.visit, work) for stage in self.stages.values()])
        return [OfModel(name, row) for name, rows in zip(self.stages, visits, strict=True) for row in rows]


def build_multi_model(
    make_stage: Callable[..., Stage[Any, Any]], adapters: Mapping[str, object], model: VisionLanguageModel
) -> MultiModel[Any, Any]:
    """A stage for each of an engine's models.

    Args:
        make_stage: Takes the model that it asks.
        adapters: By the models' names; None for the engine's model as it is.
        model: Of the engine, which has taken up the adapters under these names.
    """
    models = {n: model if adapter is None else LoraView(model, n) for n, adapter in adapters.items()}
    return MultiModel(model, {name: make_stage(found) for name, found in models.items()})
