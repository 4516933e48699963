"""Render prompts with a model's own chat template. Serving, training and evaluation use the same prompts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mpa_ray.errors import ConfigError, did_you_mean
from mpa_ray.tasks.reasoning import (
    closes_reasoning,
    closing_of,
    mentions_reasoning,
    opened_reasoning,
    without_reasoning,
)
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


DEFAULT_REASONING_TOKENS = 2048
"""The limit of reasoning for a model whose template has a reasoning tag, if `max_reasoning_tokens` is not set."""

_GENERATION = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")
"""A Jinja statement of transformers. It marks the tokens of replies, and does not change the text."""
_PROVIDED = frozenset(("messages", "add_generation_prompt", "raise_exception", "strftime_now", "namespace", "range"))


def chat_template_of(processor: Any) -> str:
    """The source of the chat template that `apply_chat_template` uses; "" if there is none."""
    template = processor.chat_template or getattr(processor.tokenizer, "chat_template", None)
    if isinstance(template, dict):
        template = template.get("default")
    return template or ""


def check_arguments(processor: Any, arguments: Mapping[str, Any], field: str) -> None:
    """Check that the chat template uses all of the arguments.

    Args:
        processor: The model's processor.
        arguments: The model's `chat_template_args`.
        field: Their dotted name.

    Raises:
        ConfigError: the template does not use an argument, which would have no effect.
    """
    from jinja2 import Environment, TemplateSyntaxError
    from jinja2.meta import find_undeclared_variables

    environment = Environment(autoescape=True, extensions=["jinja2.ext.loopcontrols"])
    try:
        used = find_undeclared_variables(environment.parse(_GENERATION.sub("", chat_template_of(processor))))
    except TemplateSyntaxError:
        # transformers reports this error when it renders the first prompt.
        return
    names = sorted(name for name in used - _PROVIDED if not name.endswith("_token"))
    for name in arguments:
        if name not in used:
            choices = f"It uses {', '.join(names)}." if names else "It uses no variables."
            remedy = f"{did_you_mean(name, names)} {choices} Remove {name}, or give one of these."
            raise ConfigError(f"{field}.{name}", arguments[name], "is not used by the chat template.", remedy.strip())


def reasoning_tokens(processor: Any, prompt: str, max_reasoning_tokens: int | None) -> int:
    """The number of tokens that a reply may have in addition to its answer.

    Args:
        processor: The model's processor.
        prompt: A prompt that `render` has rendered.
        max_reasoning_tokens: The setting of the model.
    """
    if max_reasoning_tokens is not None:
        return max_reasoning_tokens
    may_reason = mentions_reasoning(chat_template_of(processor)) and not closes_reasoning(prompt)
    return DEFAULT_REASONING_TOKENS if may_reason else 0


def render(processor: Any, text: str, arguments: Mapping[str, Any] | None = None) -> str:
    """The prompt up to the beginning of the reply, with one image placeholder before the text.

    Args:
        processor: The model's processor.
        text: The text after the image.
        arguments: The model's `chat_template_args`.

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
    prompt: str = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=False, **(arguments or {})
    )
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


def closing_tag(processor: Any, arguments: Mapping[str, Any]) -> str:
    """The tag that closes the reasoning which the chat template opens in every prompt; "" if it opens none."""
    opening = opened_reasoning(render(processor, "?", arguments))
    return closing_of(opening) if opening else ""


@dataclass(frozen=True)
class Turn:
    """The text that the chat template writes around a reply, after the prompt of `render`."""

    before: str
    after: str
    """The text after the reply, up to and including the token that ends the turn."""


def turn_of(processor: Any, arguments: Mapping[str, Any] | None = None) -> Turn:
    """Find the turn of the chat template. If it is not found, return one with only an end-of-sequence token.

    If the prompt opens the reasoning, the turn closes it before the reply: a student learns to answer immediately.
    """
    prompt, mark = render(processor, "?", arguments), "REPLY"
    messages = [
        {"role": "system", "content": [{"type": "text", "text": SYSTEM_PROMPT}]},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": mark}]},
    ]
    conversation: str = processor.apply_chat_template(messages, tokenize=False, **(arguments or {}))
    opening = opened_reasoning(prompt)
    closing = f"{closing_of(opening)}\n\n" if opening else ""
    before, separator, after = conversation[len(prompt) :].partition(mark)
    end = min((after.index(token) + len(token) for token in _special_tokens(processor) if token in after), default=0)
    if not conversation.startswith(prompt) or not separator or not end:
        return Turn(closing, processor.tokenizer.eos_token)
    is_closed = not opening or (without_reasoning(f"{opening}{before}{mark}") or "").strip() == mark
    return Turn(before if is_closed else f"{before}{closing}", after[:end])
