"""Stops a pass when too many of its model's replies cannot be parsed."""

from __future__ import annotations

from collections import Counter

from mpa_ray.config import LimitsConfig
from mpa_ray.errors import RunError
from mpa_ray.errors.remedies import Remedy
from mpa_ray.pipeline.pass_spec import ShardDone
from mpa_ray.records import Reason
from mpa_ray.tasks.parser import ReplyError

_REMEDIES: dict[str, str] = {
    Reason.REASONING_TRUNCATED: (
        "The model reasons until the token limit: raise its max_reasoning_tokens, or set its chat_template_args to "
        "{enable_thinking: false} if its chat template knows this variable."
    ),
    Reason.REPLY_TRUNCATED: "Raise annotate.sampling.max_new_tokens, or ask for shorter replies in the task's prompt.",
    ReplyError.ANSWER_TOO_LONG: "Raise the task's max_answer_words, or ask for shorter answers in the task's prompt.",
    ReplyError.REFUSAL: "The teacher refuses: change the task's annotation_prompt, or use another teacher.",
    ReplyError.EMPTY_REPLY: (
        "The teacher writes nothing: check that its checkpoint has the chat template it was trained with, or use "
        "another teacher."
    ),
}
_LABELS = (
    "Set annotate.reply to json, ask for the format in the task's annotation_prompt with {format}, or add the labels "
    "that the teacher writes to the task's labels."
)
"""The remedy for replies in which the parser finds no pair."""


class ReplyGuard:
    """Stops a pass when too many of its replies cannot be parsed, and says what to change."""

    def __init__(self, limits: LimitsConfig, pool: str) -> None:
        """Begin at zero.

        Args:
            limits: The limits of the run.
            pool: The name of the pass, which begins the message.
        """
        self._limits, self._pool = limits, pool
        self._num_images = self._num_replies = 0
        self._unparsed: Counter[str] = Counter()

    def count(self, shard: ShardDone) -> None:
        """Count a shard. Raises RunError once the share of replies that cannot be parsed is over the limit."""
        self._num_images += shard.num_images
        self._num_replies += shard.num_replies
        self._unparsed.update(shard.unparsed)
        num_unparsed, rate = self._unparsed.total(), self._limits.max_unparsed_rate
        if self._num_images >= self._limits.min_images and num_unparsed > rate * self._num_replies:
            counts = ", ".join(f"{reason}: {number}" for reason, number in self._unparsed.most_common(3))
            (most, _), *_ = self._unparsed.most_common(1)
            raise RunError(
                f"{self._pool}: {num_unparsed} of {self._num_replies} replies cannot be parsed, more than "
                f"limits.max_unparsed_rate = {rate} ({counts}). {_REMEDIES.get(most, _LABELS)} {Remedy.OTHER_RUN}"
            )
