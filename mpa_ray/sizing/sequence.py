"""The longest sequence that an engine needs: an image, a prompt about it, and the reply."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeVar

from mpa_ray.config import EvaluationRunConfig, ModelConfig, RunConfig
from mpa_ray.imaging.image_tokens import WITH_MARKERS
from mpa_ray.models.chat_template import DEFAULT_REASONING_TOKENS
from mpa_ray.sizing.architecture import Architecture
from mpa_ray.tasks.task import Task

ModelT = TypeVar("ModelT", bound=ModelConfig)

_QUESTION_TOKENS = 2048
"""Tokens of a question and of the chat template. Questions of benchmarks have a few hundred tokens at most."""
_MULTIPLE = 64


@dataclass(frozen=True)
class VisitText:
    """The text of the longest visit to an image."""

    num_prompt_bytes: int
    """Bytes of the longest prompt of the task, without a question. No tokenizer makes more tokens of it."""
    max_new_tokens: int
    """The longest reply, without reasoning."""

    @classmethod
    def of(cls, config: EvaluationRunConfig, task: Task) -> VisitText:
        """The longest text in the passes of a run."""
        prompts = [task.annotation_prompt(), task.annotation_prompt(as_json=True), task.answer_prompt("")]
        replies = [config.answer.max_new_tokens]
        if isinstance(config, RunConfig):
            replies.append(config.annotate.sampling.max_new_tokens)
        return cls(max(len(prompt.encode(errors="replace")) for prompt in prompts), max(replies))

    def sequence_tokens(self, model: ModelConfig, sizes: Architecture) -> int | None:
        """Tokens of the longest sequence; None if the model's own limit is not higher, or no rule counts its tokens."""
        if not sizes.has_image_rule:
            return None
        image_tokens = WITH_MARKERS * sizes.image_rule.most_tokens(model.min_pixels, model.max_pixels)
        reasoning_tokens = model.max_reasoning_tokens
        if reasoning_tokens is None:
            # Only the chat template shows whether the model reasons.
            reasoning_tokens = DEFAULT_REASONING_TOKENS
        needed = image_tokens + self.num_prompt_bytes + _QUESTION_TOKENS + reasoning_tokens + self.max_new_tokens
        num_tokens = math.ceil(needed / _MULTIPLE) * _MULTIPLE
        return num_tokens if num_tokens < sizes.max_position_embeddings else None

    def with_limit(self, model: ModelT, sizes: Architecture | None) -> ModelT:
        """The model with a sequence length that is enough for every visit, unless its settings have a limit."""
        if sizes is None or model.engine.limits_sequences:
            return model
        num_tokens = self.sequence_tokens(model, sizes)
        if num_tokens is None:
            return model
        return model.model_copy(update={"engine": model.engine.with_max_sequence_tokens(num_tokens)})
