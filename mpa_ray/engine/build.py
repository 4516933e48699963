"""From a model's configuration to its running engine."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from mpa_ray.config import ModelConfig, ObjectStoreConfig, ScriptedEngineConfig
from mpa_ray.engine.instrumented import Instrumented
from mpa_ray.engine.protocol import VisionLanguageModel
from mpa_ray.engine.scripted import ScriptedEngine
from mpa_ray.engine.timeout import WithTimeout
from mpa_ray.models.checkpoints import local_folder, local_model
from mpa_ray.models.shared_engines import Adapter
from mpa_ray.observability.usage import Load, Usage


def images_in_flight(config: ModelConfig) -> int:
    """A tenth more than the engine decodes together keeps its batch full and the KV blocks of each image in place."""
    if config.max_images_in_flight is not None:
        return config.max_images_in_flight
    engine = config.engine
    return 64 if isinstance(engine, ScriptedEngineConfig) else math.ceil(1.1 * engine.max_num_seqs)


def build_engine(
    config: ModelConfig,
    adapters: Mapping[str, Adapter],
    object_store: ObjectStoreConfig,
    request_timeout_s: float,
    usage: Usage,
    load: Load,
) -> VisionLanguageModel:
    """Start the engine that the configuration names, in this process.

    Args:
        config: The model, and how it is served.
        adapters: Those that requests may name.
        object_store: How models at s3:// are reached.
        request_timeout_s: An engine that leaves a request unanswered for so long is taken for dead.
        usage: What the engine spends is added to it.
        load: Shows what is in the engine.
    """
    return Instrumented(WithTimeout(_start(config, adapters, object_store), request_timeout_s), usage, load)


def _start(
    config: ModelConfig, adapters: Mapping[str, Adapter], object_store: ObjectStoreConfig
) -> VisionLanguageModel:
    if isinstance(config.engine, ScriptedEngineConfig):
        return ScriptedEngine(config.engine, (config.min_pixels, config.max_pixels), images_in_flight(config))
    # Only here, so that a machine without vLLM can run everything else.
    from mpa_ray.engine.vllm.engine import VllmEngine

    local = config.model_copy(update={"model": local_model(config.model, object_store)})
    here = {
        name: replace(adapter, model=local_folder(adapter.model, object_store)) for name, adapter in adapters.items()
    }
    return VllmEngine(local, images_in_flight(config), here)
