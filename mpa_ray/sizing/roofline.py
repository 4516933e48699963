"""Estimate seconds of work from a GPU's peak speed, if no rate was measured."""

from __future__ import annotations

from dataclasses import dataclass

from mpa_ray.config import LevelConfig, LoraConfig, ModelConfig, RunConfig
from mpa_ray.models.gpus import Gpu
from mpa_ray.sizing.architecture import Architecture
from mpa_ray.sizing.rates import ANSWER_TOKENS, PAIR_TOKENS, PROMPT_TOKENS

_TAIL_TOKENS = 60
"""Tokens of a second prompt about the same image that are not in the prefix cache."""


@dataclass(frozen=True)
class Roofline:
    """The least time that operations and memory traffic take if a GPU reaches a share of its peak.

    The time for rendering images, for Ray and for scheduling is left out, so a measured rate is more accurate.
    """

    gpu: Gpu
    efficiency: float
    """The share of the peak, from 0 to 1."""

    def annotation_s(self, model: ModelConfig, sizes: Architecture, image_tokens: int, config: RunConfig) -> float:
        """Seconds that one replica takes for one image, including the second answers."""
        questions, answers = config.annotate.num_questions, config.annotate.num_second_answers
        pair_tokens = min(PAIR_TOKENS, config.annotate.sampling.max_new_tokens)
        answer_tokens = min(ANSWER_TOKENS, config.answer.max_new_tokens)
        first_prompt_s = self._prompt_s(sizes, image_tokens)
        further_prompt_s = self._compute_s(sizes.language_operations(_TAIL_TOKENS, image_tokens))
        num_prompts = questions * (1 + answers)
        num_output_tokens = questions * (pair_tokens + answers * answer_tokens)
        output_s = num_output_tokens * self._output_token_s(model, sizes, image_tokens)
        return (first_prompt_s + (num_prompts - 1) * further_prompt_s + output_s) / _num_gpus(model)

    def answer_s(self, model: ModelConfig, sizes: Architecture, image_tokens: int, config: RunConfig) -> float:
        """Seconds that one replica takes for one question about one image."""
        num_output_tokens = min(ANSWER_TOKENS, config.answer.max_new_tokens)
        output_s = num_output_tokens * self._output_token_s(model, sizes, image_tokens)
        return (self._prompt_s(sizes, image_tokens) + output_s) / _num_gpus(model)

    def sample_s(self, level: LevelConfig, sizes: Architecture, image_tokens: int) -> float:
        """Seconds that one worker takes for one training sample.

        The backward pass costs as much as one forward pass for the gradients of activations, and as much as another one
        for the gradients of trained weights (arXiv 2001.08361, section 2.1). LoRA's weights are too small to count.
        """
        language = sizes.language_operations(image_tokens + PROMPT_TOKENS)
        vision = sizes.vision_operations(image_tokens)
        weight_gradients = 0 if isinstance(level.method, LoraConfig) else 1
        recomputation = 1 if level.gradient_checkpointing else 0
        trained = 2 + weight_gradients + recomputation
        total = language * trained + vision * (trained if "vision" in level.method.components else 1)
        return self._compute_s(total) / max(1.0, level.gpus_per_worker)

    def _prompt_s(self, sizes: Architecture, image_tokens: int) -> float:
        """Seconds for an image and a prompt that are not in the cache."""
        language = sizes.language_operations(image_tokens + PROMPT_TOKENS)
        return self._compute_s(sizes.vision_operations(image_tokens) + language)

    def _output_token_s(self, model: ModelConfig, sizes: Architecture, image_tokens: int) -> float:
        """Seconds for one output token, limited by memory traffic or by operations.

        All requests that are decoded together share one read of the weights; each request reads its own cache.
        """
        num_bytes = sizes.weight_bytes(model.engine.weight_format) / model.engine.num_decoded_together
        num_bytes += sizes.kv_bytes_per_token() * (image_tokens + PROMPT_TOKENS)
        operations = sizes.language_operations(1, image_tokens + PROMPT_TOKENS) + sizes.head_operations
        return max(num_bytes / (self.gpu.bandwidth_gb_s * 1e9 * self.efficiency), self._compute_s(operations))

    def _compute_s(self, operations: float) -> float:
        return operations / (self.gpu.tflops * 1e12 * self.efficiency)


def _num_gpus(model: ModelConfig) -> float:
    """How many GPUs work on one request: a fraction of one, or all that hold one copy of the model."""
    return model.gpus_per_replica if model.gpus_per_replica < 1 else model.engine.num_gpus_per_copy
