"""How many tokens vLLM computes in a batch, and how much memory it keeps for images."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from mpa_ray.config import ModelConfig, ObjectStoreConfig
from mpa_ray.errors import ConfigError
from mpa_ray.imaging.image_tokens import WITH_MARKERS, image_token_rule
from mpa_ray.models.checkpoints import model_settings, processor_settings
from mpa_ray.models.omitted_settings import with_defaults

_CPU_BATCH_TOKENS = 2048
"""vLLM's default for an asynchronous engine on a CPU."""
_GPU_BATCH_TOKENS = 8192
"""vLLM's default for work in batches on most GPUs."""
_MULTIPLE = 64
_BYTES_PER_PIXEL = 3 * 4
"""Three channels in 32 bits."""
_SPARE_IMAGES = 1.25
"""The size of the cache, as a multiple of the images in flight. Without room to spare, it could evict one of them."""
_GIB = 2**30


@dataclass(frozen=True)
class ImageBudget:
    """The size of the largest image within a model's pixel limits, from which the limits of its engine follow."""

    num_tokens: int
    num_bytes: int
    """Bytes of the image's tensors."""

    @classmethod
    def of(cls, model: ModelConfig, processor_arguments: Mapping[str, Any] | None = None) -> Self | None:
        """The budget of a checkpoint; None if its settings cannot be read, or its family is not known.

        Args:
            model: The model, whose checkpoint is a local folder or a hub name.
            processor_arguments: Arguments with which the engine calls the processor.
        """
        try:
            settings = with_defaults(model_settings(model.model, ObjectStoreConfig()))
            processor = processor_settings(model.model, ObjectStoreConfig())
            rule = image_token_rule(settings, processor, processor_arguments)
            if rule is None:
                return None
            limits = model.min_pixels, model.max_pixels
            num_bytes = rule.most_pixels(*limits) * rule.frames * _BYTES_PER_PIXEL
            return cls(math.ceil(WITH_MARKERS * rule.most_tokens(*limits)), num_bytes)
        except (ConfigError, LookupError, TypeError, ValueError, ArithmeticError, AttributeError):
            # vLLM then uses its own budgets, and reports damaged settings itself.
            return None

    def cache_gib(self, num_images: int) -> float:
        """The size of a cache that holds the tensors of the images in flight, at least 1 GiB."""
        return max(1.0, math.ceil(4 * _SPARE_IMAGES * num_images * self.num_bytes / _GIB) / 4)


def batch_tokens(budget: ImageBudget | None, default: int | None) -> int | None:
    """The value of `max_num_batched_tokens`, which is also the size of the encoder's cache; None leaves it to vLLM.

    An image with more tokens could not be computed.

    Args:
        budget: The largest image; None if it is not known.
        default: vLLM's own default for work in batches on this GPU; None on a CPU.
    """
    num_tokens = budget.num_tokens if budget is not None else 0
    if default is None and num_tokens <= _CPU_BATCH_TOKENS:
        return None
    return max(default or 0, math.ceil(num_tokens / _MULTIPLE) * _MULTIPLE)


def default_batch_tokens(num_gpus: int) -> int:
    """vLLM's own default of `max_num_batched_tokens` for work in batches (`LLM`) on this GPU.

    An asynchronous engine has a smaller default, which is meant for short waiting times.
    """
    from vllm import EngineArgs
    from vllm.usage.usage_lib import UsageContext

    defaults_of = getattr(EngineArgs, "get_batch_defaults", None)
    if defaults_of is None:
        return _GPU_BATCH_TOKENS
    defaults, _ = defaults_of(num_gpus)
    return int(defaults.get(UsageContext.LLM_CLASS, _GPU_BATCH_TOKENS))
