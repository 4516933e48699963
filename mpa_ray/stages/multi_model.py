"""Ask several models of one engine about each image, which is encoded only once."""

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
    """Runs one stage for each model, all on the same rows. The image is read, decoded and encoded only once."""

    model: VisionLanguageModel
    stages: Mapping[str, Stage[RowT, OutT]]
    """The stage of each model, by the model's name."""

    async def visit(self, work: ImageWork[RowT]) -> list[OfModel[OutT]]:
        """The rows of all stages, model by model."""
        if isinstance(work.content, bytes):
            work = replace(work, content=await encode_work(work, self.model))
        visits = await first_alone([partial(stage.visit, work) for stage in self.stages.values()])
        return [OfModel(name, row) for name, rows in zip(self.stages, visits, strict=True) for row in rows]


def build_multi_model(
    make_stage: Callable[..., Stage[Any, Any]], adapters: Mapping[str, object], model: VisionLanguageModel
) -> MultiModel[Any, Any]:
    """Make one stage for each of an engine's models.

    Args:
        make_stage: Returns a stage for the model that is its argument.
        adapters: The adapter of each model, by the model's name; None for the engine's model without an adapter.
        model: The engine's model; the engine serves the adapters under the models' names.
    """
    models = {name: model if adapter is None else LoraView(model, name) for name, adapter in adapters.items()}
    return MultiModel(model, {name: make_stage(view) for name, view in models.items()})
