"""One vLLM engine on a GPU, used in five ways on the same images and prompts: images per second of each.

    python -m benchmarks.gpu.engine_ladder --out FILE [--shape 7b] [--num-renderers 12] [--rows ...] [--dry-run]

    two-passes         raw prompts: one pass annotates all images, and another answers a question about each
    visit-raw          raw prompts: an image's question follows its annotation while the image is cached
    visit-thread       this project's engine, which renders an image once, in a thread beside the event loop
    visit-processes    the same in `--num-renderers` processes
    visit-rendered     the upper limit: images are rendered before the clock starts

Needs vLLM, not Ray. vLLM makes random weights. A reply has the length of its token limit, since the one token that ends
replies is almost never the likeliest of 150,000; `mean_reply_tokens` records it. Each row appends other bytes to the
JPEG files, so that it finds no image of an earlier row in a cache. Rates are those of a full engine: they leave out the
images that were finished while the engine filled or emptied.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.gpu.measuring import GpuMonitor, Options, Record, parse_options, timed
from benchmarks.gpu.serving import Serving, disable_flashinfer_sampler
from benchmarks.gpu.shapes import SHAPES, build_checkpoint, paint_images
from mpa_ray.config import ModelConfig, SamplingConfig, VllmEngineConfig
from mpa_ray.engine.protocol import EncodedImage, Reply, Request, VisionLanguageModel
from mpa_ray.imaging.decode import ImageProblem
from mpa_ray.imaging.prepare import prepare_in_thread
from mpa_ray.tasks.library import TASKS

ROWS = ("two-passes", "visit-raw", "visit-thread", "visit-processes", "visit-rendered")
TASK = TASKS["demo_world"]
QUESTION = "How many objects are there?"
DRY_RUN = {
    "shape": "tiny",
    "side": 112,
    "num_images": 24,
    "max_num_seqs": 4,
    "max_model_len": 512,
    "num_renderers": 1,
}

Encode = Callable[[str, bytes], Awaitable[EncodedImage | ImageProblem]]
"""Converts an image, by its id and its file's bytes, to the engine's form."""


@dataclass(frozen=True)
class Sizes(Options):
    rows: list[str]
    shape: str
    side: int
    """Width and height of the square images, in pixels."""
    num_images: int
    max_num_seqs: int
    max_model_len: int
    num_renderers: int
    first_tokens: int
    second_tokens: int
    engine_args: dict[str, Any]

    @property
    def num_in_flight(self) -> int:
        """Images that the engine works on at a time, as the project sets it by default."""
        return round(1.1 * self.max_num_seqs)

    @property
    def annotate(self) -> Request:
        return Request(TASK.annotation_prompt(), SamplingConfig(max_new_tokens=self.first_tokens))

    @property
    def answer(self) -> Request:
        return Request(TASK.answer_prompt(QUESTION), SamplingConfig(max_new_tokens=self.second_tokens))

    def model_config(self, model: str) -> ModelConfig:
        serving = Serving(
            side_px=self.side,
            max_num_seqs=self.max_num_seqs,
            max_model_len=self.max_model_len,
            num_renderers=self.num_renderers,
            on_gpu=not self.dry_run,
            engine_args=self.engine_args,
        )
        return ModelConfig.model_validate(serving.model_settings(model))


@dataclass(frozen=True)
class Rate:
    """How fast a full engine was, and between which moments of `time.monotonic()` it was full."""

    images_per_s: float
    started_s: float
    ended_s: float


def steady_rate(done_s: Sequence[float], num_in_flight: int) -> Rate:
    """The rate without the images that were finished while the engine filled or emptied, if enough others are left.

    Args:
        done_s: When each image was finished.
        num_in_flight: How many images the engine worked on at a time.
    """
    done_s = sorted(done_s)
    if len(done_s) > 3 * num_in_flight:
        done_s = done_s[num_in_flight - 1 : 1 - num_in_flight or None]
    return Rate((len(done_s) - 1) / (done_s[-1] - done_s[0]), done_s[0], done_s[-1])


@dataclass(frozen=True)
class Visits:
    """The replies about all images, and when they were complete."""

    done_s: list[float]
    replies: list[list[Reply]]
    """For each request, one reply per image."""

    def row(self, names: Sequence[str]) -> dict[str, object]:
        """What the caches saved and how long the replies were, by the names of the requests."""
        row: dict[str, object] = {}
        for name, replies in zip(names, self.replies, strict=True):
            num_prompt_tokens = sum(reply.num_prompt_tokens for reply in replies)
            num_cached_tokens = sum(reply.num_cached_tokens for reply in replies)
            row[f"{name}_cached_share"] = round(num_cached_tokens / num_prompt_tokens, 4)
            row[f"{name}_uncached_image_tokens"] = sum(reply.num_uncached_image_tokens for reply in replies)
            row[f"{name}_mean_reply_tokens"] = round(fmean(reply.num_output_tokens for reply in replies), 2)
        return row


async def visit_all(
    engine: VisionLanguageModel, encode: Encode, contents: Sequence[bytes], requests: Sequence[Request], label: str
) -> Visits:
    """Send all requests about each image one after another, with `max_images_in_flight` images at a time.

    Raises:
        ValueError: an image cannot be decoded.
    """
    slots = asyncio.Semaphore(engine.max_images_in_flight)
    done_s: list[float] = []

    async def visit(number: int, content: bytes) -> list[Reply]:
        async with slots:
            image = await encode(f"{label}-{number}", content + label.encode())
            if isinstance(image, ImageProblem):
                raise ValueError(f"image {number}: {image.detail}")
            replies = [await engine.generate(image, request) for request in requests]
        done_s.append(time.monotonic())
        return replies

    replies = await asyncio.gather(*(visit(number, content) for number, content in enumerate(contents)))
    return Visits(done_s, [list(column) for column in zip(*replies, strict=True)])


def settings_of(config: ModelConfig) -> VllmEngineConfig:
    assert isinstance(config.engine, VllmEngineConfig)
    return config.engine


class Ladder:
    """Measures the rows, one after another, with one engine."""

    def __init__(self, sizes: Sizes, config: ModelConfig, contents: Sequence[bytes], record: Record) -> None:
        from mpa_ray.engine.vllm.engine import VllmEngine

        self._sizes, self._config, self._contents, self._record = sizes, config, contents, record
        with timed("engine"):
            started_s = time.monotonic()
            self._engine = VllmEngine(config, settings_of(config), sizes.num_in_flight)
            record.summarise(engine_start_s=round(time.monotonic() - started_s, 1))

    async def measure(self, monitor: GpuMonitor) -> None:
        measures = {
            "two-passes": self._two_passes,
            "visit-raw": self._visit_raw,
            "visit-thread": self._visit_thread,
            "visit-processes": self._visit_processes,
            "visit-rendered": self._visit_rendered,
        }
        warm_up = self._contents[: 2 * self._sizes.num_in_flight]
        with timed("warm-up"):
            await visit_all(self._engine, self._encode_raw, warm_up, self._requests, "warm-up")
        for name in self._sizes.rows:
            with timed(name):
                await measures[name](monitor)

    def close(self) -> None:
        self._engine.close()

    @property
    def _requests(self) -> tuple[Request, Request]:
        return self._sizes.annotate, self._sizes.answer

    async def _two_passes(self, monitor: GpuMonitor) -> None:
        first = await self._pass("first-pass", self._sizes.annotate, monitor)
        second = await self._pass("second-pass", self._sizes.answer, monitor)
        self._record.add("two-passes", {"images_per_s": 1 / (1 / first + 1 / second)})

    async def _pass(self, name: str, request: Request, monitor: GpuMonitor) -> float:
        """One request about every image; returns images per second."""
        visits = await visit_all(self._engine, self._encode_raw, self._contents, [request], name)
        rate = steady_rate(visits.done_s, self._sizes.num_in_flight)
        load = monitor.between(rate.started_s, rate.ended_s)
        self._record.add(name, {"images_per_s": rate.images_per_s, **visits.row(["request"]), **load})
        return rate.images_per_s

    async def _visit_raw(self, monitor: GpuMonitor) -> None:
        await self._visit("visit-raw", self._encode_raw, monitor)

    async def _visit_thread(self, monitor: GpuMonitor) -> None:
        from mpa_ray.engine.vllm.arguments import engine_arguments
        from mpa_ray.engine.vllm.rendering import RenderedImage, RenderingThread

        config = self._config
        arguments = engine_arguments(config, settings_of(config), on_cpu=self._sizes.dry_run, adapters={})
        with closing(RenderingThread(arguments, config.pixel_limits)) as thread:

            async def encode(image_id: str, content: bytes) -> EncodedImage:
                rendered = await thread.render_image(content)
                assert isinstance(rendered, RenderedImage)
                return EncodedImage(image_id, rendered.key, rendered)

            await self._visit("visit-thread", encode, monitor)

    async def _visit_processes(self, monitor: GpuMonitor) -> None:
        # Each process loads the model's processor with its first image.
        some = self._contents[: 2 * self._sizes.num_renderers]
        await asyncio.gather(*(self._engine.encode_image("warm-up", content) for content in some))
        await self._visit("visit-processes", self._engine.encode_image, monitor)

    async def _visit_rendered(self, monitor: GpuMonitor) -> None:
        rendered: dict[str, EncodedImage | ImageProblem] = {}

        async def render(number: int, content: bytes) -> None:
            image_id = f"visit-rendered-{number}"
            rendered[image_id] = await self._engine.encode_image(image_id, content + b"visit-rendered")

        async def take(image_id: str, _: bytes) -> EncodedImage | ImageProblem:
            return rendered[image_id]

        await asyncio.gather(*(render(number, content) for number, content in enumerate(self._contents)))
        await self._visit("visit-rendered", take, monitor)

    async def _visit(self, name: str, encode: Encode, monitor: GpuMonitor) -> None:
        visits = await visit_all(self._engine, encode, self._contents, self._requests, name)
        rate = steady_rate(visits.done_s, self._sizes.num_in_flight)
        load = monitor.between(rate.started_s, rate.ended_s)
        self._record.add(name, {"images_per_s": rate.images_per_s, **visits.row(["first", "second"]), **load})

    async def _encode_raw(self, image_id: str, content: bytes) -> EncodedImage | ImageProblem:
        """The decoded image, which vLLM renders for every prompt."""
        prepared = await prepare_in_thread(content, self._config.min_pixels, self._config.max_pixels)
        return prepared if isinstance(prepared, ImageProblem) else EncodedImage(image_id, prepared.key, prepared.image)


async def climb(sizes: Sizes, model: str, contents: Sequence[bytes], record: Record) -> None:
    """Start the engine and measure all rows in one event loop: vLLM answers in the loop of its first request."""
    ladder = Ladder(sizes, sizes.model_config(model), contents, record)
    try:
        with GpuMonitor() as monitor:
            await ladder.measure(monitor)
    finally:
        ladder.close()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.engine_ladder", description=__doc__)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--shape", choices=list(SHAPES), default="7b")
    parser.add_argument("--side", type=int, default=896, help="of the images, in pixels")
    parser.add_argument("--num-images", type=int, default=320)
    parser.add_argument("--max-num-seqs", type=int, default=64)
    parser.add_argument("--max-model-len", type=int, default=4096)
    parser.add_argument("--num-renderers", type=int, default=12)
    parser.add_argument("--first-tokens", type=int, default=32, help="length of an annotation")
    parser.add_argument("--second-tokens", type=int, default=8, help="length of an answer")
    parser.add_argument("--engine-args", type=json.loads, default={}, metavar="JSON", help="more settings for vLLM")
    sizes = Sizes(**parse_options(parser, DRY_RUN))
    disable_flashinfer_sampler()
    record = Record(sizes)
    with tempfile.TemporaryDirectory() as scratch:
        with timed("images"):
            images = paint_images(Path(scratch, "images"), [sizes.side], sizes.num_images)
        with timed("checkpoint"):
            build_checkpoint(sizes.shape, Path(scratch, "model"), sizes.side, with_weights=False)
        contents = [Path(image.path).read_bytes() for image in images]
        asyncio.run(climb(sizes, str(Path(scratch, "model")), contents, record))
    return record.exit_code


if __name__ == "__main__":
    sys.exit(main())
