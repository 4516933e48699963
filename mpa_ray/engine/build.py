"""Starts the engine that a model's configuration describes."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from mpa_ray.config import EngineConfig, ModelConfig, ObjectStoreConfig
from mpa_ray.engine.instrumented import Instrumented
from mpa_ray.engine.protocol import VisionLanguageModel
from mpa_ray.engine.timeout import WithTimeout
from mpa_ray.models.shared_engines import Adapter
from mpa_ray.observability.usage import Load, Usage


class EngineFactory(Protocol):
    """A function that starts one kind of engine in this process. `EngineSettings.factory` names the function."""

    def __call__(
        self,
        model: ModelConfig,
        settings: Any,
        max_images_in_flight: int,
        adapters: Mapping[str, Adapter],
        object_store: ObjectStoreConfig,
    ) -> VisionLanguageModel:
        """Start the engine.

        Args:
            model: The model to serve.
            settings: The value of `model.engine`. Its class names this factory.
            max_images_in_flight: See `VisionLanguageModel`.
            adapters: The adapters that requests may name.
            object_store: How to reach models at s3://.
        """
        ...


EngineCheck = Callable[[Any, str], None]
"""Compares the settings of one kind of engine with the installed engine. `EngineSettings.check` names the function. Its
second argument is the dotted name of the settings. Raises ConfigError."""


def images_in_flight(config: ModelConfig) -> int:
    """The number of images that one engine of a model works on concurrently."""
    return config.max_images_in_flight or config.engine.default_images_in_flight


def engine_factory(settings: EngineConfig) -> EngineFactory:
    """Import the factory that the settings name. No other code imports factories, so other code does not need vLLM."""
    factory: EngineFactory = _imported(settings.factory)
    return factory


def check_settings(settings: EngineConfig, field: str) -> None:
    """Compare the settings with the engine that is installed on this machine.

    Args:
        settings: The engine's settings.
        field: Their dotted name.

    Raises:
        ConfigError: the installed engine does not have one of the settings.
    """
    if settings.check is not None:
        check: EngineCheck = _imported(settings.check)
        check(settings, field)


def _imported(name: str) -> Any:
    """Import `module:function`."""
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)


def build_engine(
    config: ModelConfig,
    adapters: Mapping[str, Adapter],
    object_store: ObjectStoreConfig,
    request_timeout_s: float,
    usage: Usage,
    load: Load,
) -> VisionLanguageModel:
    """Start the engine of a model in this process.

    Args:
        config: The model and its engine's settings.
        adapters: The adapters that requests may name.
        object_store: How to reach models at s3://.
        request_timeout_s: An engine that leaves a request unanswered for this long counts as dead.
        usage: The seconds and tokens of the engine's calls are added to this object.
        load: This object shows the engine's current work.
    """
    start = engine_factory(config.engine)
    engine = start(config, config.engine, images_in_flight(config), adapters, object_store)
    return Instrumented(WithTimeout(engine, request_timeout_s), usage, load)
