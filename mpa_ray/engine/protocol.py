"""What the stages ask of a model, and what they get."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from mpa_ray.config import SamplingConfig
from mpa_ray.imaging.decode import ImageProblem
from mpa_ray.records import Reason, State


@dataclass(frozen=True)
class EncodedImage:
    """An image that an engine has looked at, ready for any number of prompts to that engine."""

    image_id: str
    key: str
    """Equal for equal files under equal pixel limits."""
    inputs: Any = None
    """The engine's own form of it."""


@dataclass(frozen=True)
class Reply:
    """A model's reply, with what is needed to judge it."""

    text: str
    finish_reason: str
    """`stop` where the model ended it, `length` where the token limit did."""
    num_prompt_tokens: int
    num_cached_tokens: int
    """Leading prompt tokens that were not computed again."""
    num_output_tokens: int
    image_end: int
    """Prompt tokens up to and with the image's last; all of them cached means the image cost nothing."""
    mean_logprob: float | None
    """Mean log-probability of the output tokens (natural logarithm)."""
    elapsed_s: float

    @property
    def truncated(self) -> bool:
        return self.finish_reason == "length"

    @property
    def num_uncached_image_tokens(self) -> int:
        """Tokens from the first that was not cached to the image's end."""
        return max(0, self.image_end - self.num_cached_tokens)


JsonSchema = dict[str, Any]


class RequestRefused(Exception):
    """The engine is well, but will not or cannot serve this one request."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail

    @property
    def state(self) -> State:
        """Dropped where the text is at fault, failed where anything else is."""
        by_text = self.reason in (Reason.PROMPT_TOO_LONG, Reason.SPECIAL_TOKEN_IN_TEXT)
        return State.DROPPED if by_text else State.FAILED


class EngineDied(Exception):
    """The engine is gone; its actor has to be replaced."""


class VisionLanguageModel(Protocol):
    """An engine. `generate` may be called many times at once, from one event loop."""

    @property
    def max_images_in_flight(self) -> int:
        """Images that may be worked on together, such that each one's KV blocks survive until its second prompt."""
        ...

    async def encode_image(self, image_id: str, content: bytes) -> EncodedImage | ImageProblem:
        """Decode a file and bring it to the model's form, once for all prompts about it.

        Raises RequestRefused for this image alone, EngineDied for the engine as a whole.
        """
        ...

    async def generate(
        self,
        image: EncodedImage,
        text: str,
        sampling: SamplingConfig,
        schema: JsonSchema | None = None,
        adapter: str | None = None,
    ) -> Reply:
        """The reply to the image and the text behind it; the engine adds the system prompt and the chat template.

        With a schema the reply is JSON that it allows, unless the token limit cuts it. An adapter is named as the
        engine was started with it; without, the model itself replies.

        Raises RequestRefused for this request alone, EngineDied for the engine as a whole.
        """
        ...

    def close(self) -> None:
        """End the engine's processes."""
        ...
