"""How generated tokens become a reply: room for reasoning, the tags of reasoning, and the limit of the answer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mpa_ray.models.chat_template import reasoning_tokens, render
from mpa_ray.tasks.reasoning import is_reply_tag, opened_reasoning, without_reasoning
from mpa_ray.tasks.task import PREAMBLE


@dataclass(frozen=True)
class ReplyFormat:
    """How the replies of one model are read."""

    tokenizer: Any
    opening: str
    """The tag with which the prompt opens the reasoning; "" if it does not."""
    max_reasoning_tokens: int
    """The number of tokens that a reply may have in addition to its answer."""
    hidden_tokens: re.Pattern[str] | None
    """Matches the special tokens that are not tags of reasoning. None if no such tag is a special token, so that all
    special tokens can be left out when the tokens are decoded."""

    @classmethod
    def of(cls, processor: Any, chat_template_args: Mapping[str, Any], max_reasoning_tokens: int | None) -> ReplyFormat:
        """The format of the replies to prompts that `render` renders with these arguments."""
        prompt = render(processor, PREAMBLE, chat_template_args)
        special = {token.content for token in processor.tokenizer.added_tokens_decoder.values() if token.special}
        hidden = sorted((token for token in special if not is_reply_tag(token)), key=len, reverse=True)
        has_special_tags = len(hidden) < len(special)
        return cls(
            tokenizer=processor.tokenizer,
            opening=opened_reasoning(prompt),
            max_reasoning_tokens=reasoning_tokens(processor, prompt, max_reasoning_tokens),
            hidden_tokens=re.compile("|".join(map(re.escape, hidden)) or "(?!)") if has_special_tags else None,
        )

    @property
    def skips_special_tokens(self) -> bool:
        """Whether special tokens are left out of the decoded text."""
        return self.hidden_tokens is None

    def max_tokens(self, max_new_tokens: int, *, may_reason: bool = True) -> int:
        """The limit for a whole reply whose answer has at most `max_new_tokens` tokens."""
        return max_new_tokens + (self.max_reasoning_tokens if may_reason else 0)

    def read(self, text: str, finish_reason: str, max_new_tokens: int, *, may_reason: bool = True) -> tuple[str, str]:
        """Return the text and the finish reason of a reply, with the limit applied to the answer alone.

        Args:
            text: The decoded reply.
            finish_reason: `stop` or `length`, for the whole reply.
            max_new_tokens: The limit of the answer.
            may_reason: False if the reply was constrained to a schema, so that it cannot have reasoning.
        """
        if self.hidden_tokens is not None:
            text = self.hidden_tokens.sub("", text)
        if not may_reason:
            return text, finish_reason
        text = self.opening + text
        answer = without_reasoning(text) if self.max_reasoning_tokens else None
        if answer is None:
            return text, finish_reason
        tokens = self.tokenizer(answer.strip(), add_special_tokens=False)["input_ids"]
        if len(tokens) <= max_new_tokens:
            return text, finish_reason
        cut = self.tokenizer.decode(tokens[:max_new_tokens])
        return f"{text[: text.rindex(answer)]}{cut}", "length"
