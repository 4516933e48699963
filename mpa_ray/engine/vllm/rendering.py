"""Renders images with vLLM's own renderer, once for all prompts about an image, in a thread or in processes."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import pickle
import re
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cache
from itertools import takewhile
from typing import Any

from PIL import Image

from mpa_ray.engine.child_processes import ChildProcesses
from mpa_ray.engine.protocol import EngineDied, RequestRefused
from mpa_ray.imaging.decode import ImageProblem
from mpa_ray.imaging.prepare import ImageScaling, PreparedImage
from mpa_ray.models.chat_template import load_processor, render
from mpa_ray.records import Reason
from mpa_ray.tasks.task import PREAMBLE

logger = logging.getLogger(__name__)

_SIZE_ARGUMENTS = frozenset(
    ("size", "min_pixels", "max_pixels", "do_resize", "patch_size", "merge_size", "images_kwargs")
)
"""The arguments for a processor that change its grid of patches or its limits."""
_TOO_LONG = re.compile(r"max_model_len|maximum (model|context) length|longer than the maximum", re.IGNORECASE)


@cache
def has_renderer() -> bool:
    """Whether the installed vLLM has a renderer that can be called outside its engine. Logs a warning if not."""
    try:
        from vllm.renderers import renderer_from_config  # noqa: F401
    except ImportError:
        logger.warning(
            "this vLLM has no renderer to call: it gets raw prompts and images, and engine.num_renderers is ignored"
        )
        return False
    return True


@dataclass
class RenderedImage:
    """An image in vLLM's form, with the head: the tokens that all prompts about the image begin with."""

    key: str
    engine_input: dict[str, Any]
    head: list[int]
    """The tokens of the head, with a single placeholder for the image."""
    expanded_head: list[int]
    """The tokens of the head, with the placeholder expanded to all tokens of the image."""
    is_in_engine: bool = False
    """Whether the tensors were sent to the engine, which may still have them in its cache."""

    def followed_by(self, tokens: list[int], with_tensors: bool = True) -> dict[str, Any]:
        """vLLM's input for a whole prompt.

        Args:
            tokens: All tokens of the prompt, with a single placeholder for the image.
            with_tensors: Include the image's tensors. Without them, vLLM uses the tensors in its cache. If its cache
                does not have them, vLLM ends the request with the finish reason `error`.

        Raises:
            ValueError: the prompt does not begin with `head`.
        """
        if tokens[: len(self.head)] != self.head:
            raise ValueError("the chat template's text before the image depends on the text after it")
        prompt = {**self.engine_input, "prompt_token_ids": self.expanded_head + tokens[len(self.head) :]}
        if not with_tensors:
            items = self.engine_input["mm_kwargs"]
            prompt["mm_kwargs"] = type(items)({kind: [None] * len(items[kind]) for kind in items})
        return prompt


@dataclass(frozen=True)
class Refusal:
    """A `RequestRefused` in a form that a rendering process can return."""

    reason: Reason
    detail: str

    @classmethod
    def of(cls, error: Exception) -> Refusal:
        """Make a refusal from an error of vLLM.

        The reason is derived from the message, since vLLM has no error class for prompts that are too long.
        """
        is_too_long = _TOO_LONG.search(str(error))
        return cls(Reason.PROMPT_TOO_LONG if is_too_long else Reason.REQUEST_FAILED, str(error))

    def as_error(self) -> RequestRefused:
        return RequestRefused(self.reason, self.detail)


def tokenize(renderer: Any, prompt: str) -> list[int]:
    """The prompt's tokens, with a single placeholder for each image."""
    (tokenized,) = renderer.tokenize_prompts([{"prompt": prompt}], renderer.default_cmpl_tok_params)
    tokens: list[int] = tokenized["prompt_token_ids"]
    return tokens


def scaling_of(processor: Any, arguments: Mapping[str, Any], pixel_limits: tuple[int, int, int]) -> ImageScaling:
    """How an engine with these arguments scales images, before its processor sees them."""
    if _SIZE_ARGUMENTS.isdisjoint(arguments.get("mm_processor_kwargs") or {}):
        return ImageScaling.of(processor, *pixel_limits)
    return ImageScaling(*pixel_limits)


def raw_image(image: Image.Image, key: str, scaling: ImageScaling) -> dict[str, Any]:
    """The part of vLLM's input that holds an image. vLLM's processor keeps the image's size if `scaling` chose it."""
    data = {"multi_modal_data": {"image": image}, "multi_modal_uuids": {"image": key}}
    arguments = scaling.processor_arguments([image])
    return {**data, "mm_processor_kwargs": arguments} if arguments else data


class Renderer:
    """Turns an image file into the model's tensors and placeholder tokens."""

    def __init__(self, arguments: dict[str, Any], pixel_limits: tuple[int, int, int]) -> None:
        import torch
        from vllm import AsyncEngineArgs
        from vllm.renderers import renderer_from_config

        torch.set_num_threads(1)
        self._renderer = renderer_from_config(AsyncEngineArgs(**arguments).create_engine_config())
        processor = load_processor(arguments["model"])
        self._scaling = scaling_of(processor, arguments, pixel_limits)
        self._tokens = tokenize(self._renderer, render(processor, PREAMBLE))

    def render_image(self, content: bytes) -> RenderedImage | ImageProblem | Refusal:
        prepared = self._scaling.prepare(content)
        if isinstance(prepared, ImageProblem):
            return prepared
        prompt = {"prompt_token_ids": self._tokens, **raw_image(prepared.image, prepared.key, self._scaling)}
        try:
            (rendered,) = self._renderer.render_cmpl([prompt], skip_mm_cache=True)
        except ValueError as error:
            return Refusal.of(error)
        expanded = rendered["prompt_token_ids"]
        # Only the image is expanded, so the two token lists have equal ends.
        pairs = zip(reversed(self._tokens), reversed(expanded), strict=False)
        num_after_image = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        # The arrival time is left out: with it, vLLM would treat every later prompt about the image as if the prompt
        # had arrived when the image was rendered.
        engine_input = {name: value for name, value in rendered.items() if name not in ("arrival_time", "prompt")}
        return RenderedImage(
            key=prepared.key,
            engine_input=engine_input,
            head=self._tokens[: len(self._tokens) - num_after_image],
            expanded_head=expanded[: len(expanded) - num_after_image],
        )


class RawImages:
    """Decodes and scales images without a renderer. vLLM then gets the images themselves, with raw prompts."""

    def __init__(self, scaling: ImageScaling) -> None:
        self._scaling = scaling

    async def render_image(self, content: bytes) -> PreparedImage | ImageProblem:
        return await self._scaling.prepare_in_thread(content)

    def close(self) -> None:
        """Do nothing."""


class RenderingThread:
    """Renders in a thread beside the event loop. The loop waits whenever the thread holds Python's interpreter lock."""

    def __init__(self, arguments: dict[str, Any], pixel_limits: tuple[int, int, int]) -> None:
        self._renderer = Renderer(arguments, pixel_limits)
        self._thread = ThreadPoolExecutor(1)

    async def render_image(self, content: bytes) -> RenderedImage | ImageProblem | Refusal:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._renderer.render_image, content)

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)


class RenderingProcesses:
    """Renders in separate processes, each with its own renderer."""

    def __init__(self, num_processes: int, arguments: dict[str, Any], pixel_limits: tuple[int, int, int]) -> None:
        self.pool = ProcessPoolExecutor(
            num_processes,
            multiprocessing.get_context("spawn"),
            initializer=_load_renderer,
            initargs=(arguments, pixel_limits),
        )
        for _ in range(num_processes):
            # A task for each process, since the pool starts a process only if a task finds no idle one.
            self.pool.submit(os.getpid)
        self._processes = ChildProcesses()
        self._processes.add_current()

    async def render_image(self, content: bytes) -> RenderedImage | ImageProblem | Refusal:
        """Render an image file in one of the processes.

        Raises:
            EngineDied: a process died or cannot start.
        """
        try:
            pickled = await asyncio.get_running_loop().run_in_executor(self.pool, _render_image, content)
        except BrokenProcessPool as error:
            raise EngineDied(f"a renderer died: {self._processes.why_died(error)}") from error
        except _RendererCannotStart as error:
            raise EngineDied(str(error)) from error
        rendered: RenderedImage | ImageProblem | Refusal = pickle.loads(pickled)
        return rendered

    def close(self) -> None:
        self.pool.shutdown(cancel_futures=True)


class _RendererCannotStart(Exception):
    """A rendering process could not load the model's processor."""


_renderer: Renderer | _RendererCannotStart | None = None
"""The renderer of a rendering process, or why it has none."""


def _load_renderer(arguments: dict[str, Any], pixel_limits: tuple[int, int, int]) -> None:
    global _renderer
    try:
        _renderer = Renderer(arguments, pixel_limits)
    except Exception as error:  # noqa: BLE001
        # If an initializer raises an error, the pool only reports that it is broken. So the error is kept, and the
        # first task raises it.
        _renderer = _RendererCannotStart(f"a renderer cannot start ({type(error).__name__}: {error})")


def _render_image(content: bytes) -> bytes:
    if isinstance(_renderer, _RendererCannotStart):
        raise _renderer
    assert _renderer is not None
    # Pickled here: torch would otherwise pass each tensor through shared memory, with one file descriptor each.
    return pickle.dumps(_renderer.render_image(content), protocol=pickle.HIGHEST_PROTOCOL)
