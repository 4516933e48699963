"""A prompt as the model's own chat template writes it: the same wherever a model is asked, trained or measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mpa_ray.errors import ConfigError
from mpa_ray.tasks.task import SYSTEM_PROMPT


class SpecialTokenInText(ValueError):
    """A text to be shown to a model holds one of its special tokens, such as the one that ends a turn."""

    def __init__(self, token: str) -> None:
        super().__init__(f"it holds the special token {token}")


def load_processor(model: str) -> Any:
    """The Hugging Face processor of a checkpoint.

    Raises:
        ConfigError: the checkpoint has none, or none that takes images.
    """
    from transformers import AutoProcessor

    try:
        processor = AutoProcessor.from_pretrained(model)  # type: ignore[no-untyped-call]
    except (OSError, ValueError, ImportError, KeyError) as error:
        told = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(
            "model", model, f"its processor cannot be loaded ({told}).", "Give a complete vision-language checkpoint."
        ) from error
    if getattr(processor, "image_processor", None) is None or getattr(processor, "image_token", None) is None:
        raise ConfigError("model", model, "its processor takes no images.", "Give a vision-language checkpoint.")
    return processor


def render(processor: Any, text: str) -> str:
    """The whole prompt up to where the reply begins, with one image placeholder before the text.

    Raises:
        SpecialTokenInText: the text, in part a teacher's, holds what the tokenizer would take for a token of its own.
        ValueError: the chat template does not put exactly one placeholder.
    """
    for token in processor.tokenizer.added_tokens_decoder.values():
        if token.special and token.content in text:
            raise SpecialTokenInText(token.content)
    messages = [
        {"role": "system", "content": [{"type": "text", "text": SYSTEM_PROMPT}]},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]},
    ]
    prompt: str = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    found = prompt.count(processor.image_token)
    if found != 1:
        # vLLM would answer without any image and without an error.
        raise ValueError(f"the chat template puts {found} image placeholders, expected 1: {prompt!r}")
    return prompt


@dataclass(frozen=True)
class Turn:
    """What the chat template writes around a reply, behind the prompt of `render`."""

    before: str
    after: str
    """Ends with the token that ends the turn."""


def turn_of(processor: Any) -> Turn:
    """The template's own frame of a reply; where it has none, nothing before and the end-of-sequence token after."""
    prompt, mark = render(processor, "?"), "REPLY"
    messages = [
        {"role": "system", "content": [{"type": "text", "text": SYSTEM_PROMPT}]},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": mark}]},
    ]
    told: str = processor.apply_chat_template(messages, tokenize=False)
    before, found, after = told[len(prompt) :].partition(mark)
    ends = [token.content for token in processor.tokenizer.added_tokens_decoder.values() if token.special]
    end = min((after.index(token) + len(token) for token in ends if token in after), default=0)
    if not told.startswith(prompt) or not found or not end:
        return Turn("", processor.tokenizer.eos_token)
    return Turn(before, after[:end])
