"""Render prompts with a model's own chat template. Serving, training and evaluation use the same prompts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mpa_ray.errors import ConfigError
from mpa_ray.tasks.task import SYSTEM_PROMPT


class SpecialTokenInText(ValueError):
    """A prompt's text contains one of the model's special tokens, such as the one that ends a turn."""

    def __init__(self, token: str) -> None:
        super().__init__(f"it contains the special token {token}")


def load_processor(model: str) -> Any:
    """The Hugging Face processor of a checkpoint.

    Raises:
        ConfigError: the checkpoint has no processor, or one that takes no images.
    """
    from transformers import AutoProcessor

    try:
        processor = AutoProcessor.from_pretrained(model)  # type: ignore[no-untyped-call]
    except (OSError, ValueError, ImportError, KeyError) as error:
        cause = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(
            "model", model, f"its processor cannot be loaded ({cause}).", "Give a complete vision-language checkpoint."
        ) from error
    if getattr(processor, "image_processor", None) is None or getattr(processor, "image_token", None) is None:
        raise ConfigError("model", model, "its processor takes no images.", "Give a vision-language checkpoint.")
    return processor


def render(processor: Any, text: str) -> str:
    """The prompt up to the beginning of the reply, with one image placeholder before the text.

    Raises:
        SpecialTokenInText: the text, which may be a question from the teacher, contains a special token.
        ValueError: the chat template does not write exactly one placeholder.
    """
    for token in _special_tokens(processor):
        if token in text:
            raise SpecialTokenInText(token)
    messages = [
        {"role": "system", "content": [{"type": "text", "text": SYSTEM_PROMPT}]},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]},
    ]
    prompt: str = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    num_placeholders = prompt.count(processor.image_token)
    if num_placeholders != 1:
        # vLLM would ignore the image, and reply without an error.
        raise ValueError(f"the chat template writes {num_placeholders} image placeholders, expected 1: {prompt!r}")
    return prompt


def _special_tokens(processor: Any) -> Iterator[str]:
    """The tokens that a text must not contain, such as those that end a turn or stand for an image."""
    # A tokenizer may not mark the placeholders of images and videos as special.
    yield from (name for name in (processor.image_token, getattr(processor, "video_token", None)) if name)
    yield from (token.content for token in processor.tokenizer.added_tokens_decoder.values() if token.special)


@dataclass(frozen=True)
class Turn:
    """The text that the chat template writes around a reply, after the prompt of `render`."""

    before: str
    after: str
    """The text after the reply, up to and including the token that ends the turn."""


def turn_of(processor: Any) -> Turn:
    """Find the turn of the chat template. If it is not found, return one with only an end-of-sequence token."""
    prompt, mark = render(processor, "?"), "REPLY"
    messages = [
        {"role": "system", "content": [{"type": "text", "text": SYSTEM_PROMPT}]},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": mark}]},
    ]
    conversation: str = processor.apply_chat_template(messages, tokenize=False)
    before, separator, after = conversation[len(prompt) :].partition(mark)
    end = min((after.index(token) + len(token) for token in _special_tokens(processor) if token in after), default=0)
    if not conversation.startswith(prompt) or not separator or not end:
        return Turn("", processor.tokenizer.eos_token)
    return Turn(before, after[:end])
