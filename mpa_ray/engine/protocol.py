"""The interface between stages and engines: an image and a request go in, a reply comes out."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from mpa_ray.config import SamplingConfig
from mpa_ray.imaging.decode import ImageProblem
from mpa_ray.records import Reason, State
from mpa_ray.tasks.reasoning import final_answer, without_reasoning

JsonSchema = dict[str, Any]


@dataclass(frozen=True)
class EncodedImage:
    """An image in an engine's own form, ready for any number of requests to that engine."""

    image_id: str
    key: str
    """The image's name in the engine's caches. Equal files under equal pixel limits have equal keys."""
    inputs: Any = None
    """The engine's own form of the image."""


@dataclass(frozen=True)
class Request:
    """The text that follows an image in a prompt, and the settings of the reply."""

    text: str
    """The engine adds the system prompt and the chat template."""
    sampling: SamplingConfig
    schema: JsonSchema | None = None
    """The reply is JSON that this schema allows, unless the token limit cuts it off; None allows any text."""
    adapter: str | None = None
    """The name of an adapter that the engine was started with; None for the model without an adapter."""


@dataclass(frozen=True)
class Reply:
    """A model's reply, with its token counts and its time."""

    text: str
    """The whole reply with its reasoning. If the prompt opened the reasoning, the text begins with the opening tag."""
    finish_reason: str
    """`stop` if the model ended the reply, `length` if the token limit did."""
    num_prompt_tokens: int
    num_cached_tokens: int
    """Leading prompt tokens that the engine found in its cache and did not compute again."""
    num_output_tokens: int
    image_end: int
    """The number of prompt tokens up to and including the image's last token. If all of these tokens were cached, the
    image was not computed again."""
    mean_logprob: float | None
    """Mean log-probability of the output tokens (natural logarithm); None for an empty reply."""
    elapsed_s: float

    @property
    def truncated(self) -> bool:
        return self.finish_reason == "length"

    @property
    def is_all_reasoning(self) -> bool:
        """Whether the reply ended before the model began its answer."""
        return without_reasoning(self.text) is None

    @cached_property
    def answer(self) -> str:
        """The answer to a question: the text without reasoning and without the marks of a final answer."""
        return final_answer(self.text) or ""

    @property
    def num_uncached_image_tokens(self) -> int:
        """The number of tokens from the first uncached one to the end of the image."""
        return max(0, self.image_end - self.num_cached_tokens)


class RequestRefused(Exception):
    """The engine is healthy, but it cannot serve this request."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail

    @property
    def state(self) -> State:
        """Dropped if the text of the prompt is the cause, failed otherwise."""
        by_text = self.reason in (Reason.PROMPT_TOO_LONG, Reason.SPECIAL_TOKEN_IN_TEXT)
        return State.DROPPED if by_text else State.FAILED


class EngineDied(Exception):
    """The engine is dead, and its actor must be replaced."""


class VisionLanguageModel(Protocol):
    """An engine. Many calls to its two coroutines may run concurrently, on one event loop."""

    @property
    def max_images_in_flight(self) -> int:
        """How many images to work on concurrently.

        With more images, the KV blocks of an image might leave the cache before the last prompt about the image.
        """
        ...

    async def encode_image(self, image_id: str, content: bytes) -> EncodedImage | ImageProblem:
        """Decode a file and convert the image to the engine's form, once for all requests about the image.

        Raises:
            RequestRefused: the engine cannot take this image.
            EngineDied: the engine can no longer take images.
        """
        ...

    async def generate(self, image: EncodedImage, request: Request) -> Reply:
        """Return the model's reply to a prompt that consists of the image and the request's text.

        Raises:
            RequestRefused: the engine cannot serve this request.
            EngineDied: the engine can no longer serve requests.
        """
        ...

    def close(self) -> None:
        """End the engine's processes."""
        ...
