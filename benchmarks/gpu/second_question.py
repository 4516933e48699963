"""The cost of a second question about an image, with and without the keys and values of the first prompt.

    python -m benchmarks.gpu.second_question --out FILE [--shape 7b] [--sides 448 896] [--batch-sizes 8 32] [--dry-run]

Uses transformers, and needs neither vLLM nor Ray. The model has random weights in bfloat16, and a batch consists of
equal images. Device events time each part: the vision tower, the prefill of the first prompt, the prefill of the second
prompt with and without the keys and values that both share, and one decoding step. The times of two passes and of one
visit are computed from these for given lengths of replies.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from statistics import median
from typing import Any

from benchmarks.gpu.measuring import GpuMonitor, Options, Record, parse_options, timed
from benchmarks.gpu.shapes import PATCH_PX, SHAPES, build_config, build_model, build_tokenizer
from mpa_ray.tasks.library import TASKS
from mpa_ray.tasks.task import PREAMBLE, SYSTEM_PROMPT

QUESTION = "How many objects are there?"
DRY_RUN = {"shape": "tiny", "sides": [112], "batch_sizes": [2], "num_repetitions": 1}
NUM_WARMUPS = 2


@dataclass(frozen=True)
class Sizes(Options):
    shape: str
    sides: list[int]
    """Of the square images, in pixels."""
    batch_sizes: list[int]
    num_repetitions: int
    first_tokens: int
    second_tokens: int
    """The lengths of the two replies that `Totals` assumes."""


@dataclass(frozen=True)
class Timings:
    """The sizes of a batch, the effect of kept keys and values on the result, and median times."""

    side_px: int
    batch_size: int
    num_image_tokens: int
    num_prompt_tokens: int
    num_second_text_tokens: int
    logits_error: float
    """Norm of the difference between the second prompt's logits with and without kept keys and values, over the norm
    of the latter."""
    same_first_token_share: float
    tower_ms: float
    first_ms: float
    second_afresh_ms: float
    second_reused_ms: float
    decode_step_ms: float


@dataclass(frozen=True)
class Totals:
    """The times of two passes and of one visit."""

    two_passes_ms: float
    visit_ms: float
    two_passes_over_visit: float
    prefill_two_passes_over_visit: float
    """The ratio without decoding, whose cost many requests share."""
    saved_share_of_second_prefill: float
    tower_share_of_first_prefill: float

    @staticmethod
    def of(timings: Timings, first_tokens: int, second_tokens: int) -> Totals:
        decode_ms = (first_tokens + second_tokens) * timings.decode_step_ms
        two_prefills_ms = timings.first_ms + timings.second_afresh_ms
        visit_prefills_ms = timings.first_ms + timings.second_reused_ms
        return Totals(
            two_passes_ms=two_prefills_ms + decode_ms,
            visit_ms=visit_prefills_ms + decode_ms,
            two_passes_over_visit=(two_prefills_ms + decode_ms) / (visit_prefills_ms + decode_ms),
            prefill_two_passes_over_visit=two_prefills_ms / visit_prefills_ms,
            saved_share_of_second_prefill=1 - timings.second_reused_ms / timings.second_afresh_ms,
            tower_share_of_first_prefill=timings.tower_ms / timings.first_ms,
        )


@dataclass(frozen=True)
class Prompts:
    """Token ids of two prompts about one image: the parts that they share, and their texts."""

    head: list[int]
    image: list[int]
    preamble: list[int]
    texts: tuple[list[int], list[int]]
    """The rest of the first and of the second prompt, up to the beginning of the reply."""

    @staticmethod
    def of(tokenizer: Any, grid: int) -> Prompts:
        """For a square image of `grid` x `grid` image tokens."""

        def encode(text: str) -> list[int]:
            ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
            return ids

        task = TASKS["demo_world"]
        head = f"<|im_start|>system\n{SYSTEM_PROMPT}<|im_end|>\n<|im_start|>user\n<|vision_start|>"
        end = "<|im_end|>\n<|im_start|>assistant\n"
        first, second = (
            encode(prompt.removeprefix(PREAMBLE) + end)
            for prompt in (task.annotation_prompt(), task.answer_prompt(QUESTION))
        )
        image_token = tokenizer.convert_tokens_to_ids("<|image_pad|>")
        return Prompts(encode(head), [image_token] * grid**2, encode(f"<|vision_end|>{PREAMBLE}"), (first, second))

    @property
    def num_shared(self) -> int:
        """The number of tokens that both prompts begin with, the image and the preamble among them."""
        return len(self.head) + len(self.image) + len(self.preamble)

    def ids(self, number: int) -> list[int]:
        return [*self.head, *self.image, *self.preamble, *self.texts[number]]


def rope_positions(num_before: int, grid: int, num_after: int) -> Any:
    """Qwen2-VL's M-RoPE positions of text, one square image and more text: (3, length)."""
    import torch

    before = torch.arange(num_before).expand(3, -1)
    rows = torch.arange(grid).repeat_interleave(grid) + num_before
    columns = torch.arange(grid).repeat(grid) + num_before
    image = torch.stack([torch.full_like(rows, num_before), rows, columns])
    after = torch.arange(num_after).expand(3, -1) + num_before + grid
    return torch.cat([before, image, after], dim=1)


class Batch:
    """Equal images with the same two prompts, and the forward passes that are timed."""

    def __init__(self, model: Any, tokenizer: Any, side_px: int, batch_size: int) -> None:
        import torch

        self.grid, self.size = side_px // PATCH_PX, batch_size
        self.prompts = Prompts.of(tokenizer, self.grid)
        self._model, self._device = model, next(model.parameters()).device
        self._image_token = self.prompts.image[0]
        generator = torch.Generator().manual_seed(0)
        patches = torch.rand((batch_size * 4 * self.grid**2, 1176), generator=generator)
        self._patches = patches.to(self._device, model.dtype)
        self._grids = torch.tensor([[1, 2 * self.grid, 2 * self.grid]] * batch_size, device=self._device)

    @cached_property
    def first(self) -> dict[str, Any]:
        return self._inputs(0)

    @cached_property
    def second(self) -> dict[str, Any]:
        return self._inputs(1)

    def _inputs(self, number: int) -> dict[str, Any]:
        """The model's inputs for a whole prompt; ids are (batch, length)."""
        import torch

        ids = torch.tensor([self.prompts.ids(number)] * self.size, device=self._device)
        num_after = len(self.prompts.preamble) + len(self.prompts.texts[number])
        positions = rope_positions(len(self.prompts.head), self.grid, num_after)
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "position_ids": positions.unsqueeze(1).expand(3, self.size, -1).to(self._device),
            "mm_token_type_ids": (ids == self._image_token).int(),
        }

    def tower(self) -> Any:
        return self._model.model.visual(self._patches, self._grids)

    def prefill(self, inputs: dict[str, Any]) -> Any:
        """Process a whole prompt with its image; the cache is empty before."""
        from transformers import DynamicCache

        return self._model(
            **inputs,
            pixel_values=self._patches,
            image_grid_thw=self._grids,
            past_key_values=DynamicCache(),
            use_cache=True,
            logits_to_keep=1,
        )

    def prefill_second_text(self, cache: Any) -> Any:
        """Process the text of the second prompt; `cache` has the keys and values of the shared tokens."""
        num_shared = self.prompts.num_shared
        _shorten(cache, num_shared)
        return self._model(
            input_ids=self.second["input_ids"][:, num_shared:],
            attention_mask=self.second["attention_mask"],
            position_ids=self.second["position_ids"][:, :, num_shared:],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )

    def decode(self, cache: Any) -> Any:
        """Process one token after the second prompt; `cache` has the keys and values of the prompt."""
        import torch

        length = self.second["input_ids"].shape[1]
        _shorten(cache, length)
        return self._model(
            input_ids=self.second["input_ids"][:, -1:],
            attention_mask=torch.ones((self.size, length + 1), dtype=torch.long, device=self._device),
            position_ids=self.second["position_ids"][:, :, -1:] + 1,
            past_key_values=cache,
            use_cache=True,
        )


def _shorten(cache: Any, length: int) -> None:
    """Keep the keys and values of the first `length` tokens."""
    num_surplus = cache.get_seq_length() - length
    if num_surplus:
        cache.crop(-num_surplus)


def measure(batch: Batch, side_px: int, num_repetitions: int) -> Timings:
    """Time all parts, and compare the second prompt's logits with and without kept keys and values."""
    import torch

    def time_ms(work: Callable[[], Any]) -> float:
        return median_ms(work, num_repetitions)

    with torch.inference_mode():
        cache = batch.prefill(batch.first).past_key_values
        afresh = batch.prefill(batch.second).logits[:, -1].float()
        reused = batch.prefill_second_text(cache).logits[:, -1].float()
        tower_ms = time_ms(batch.tower)
        first_ms = time_ms(lambda: batch.prefill(batch.first))
        second_afresh_ms = time_ms(lambda: batch.prefill(batch.second))
        # Ends with the second prompt's keys and values in the cache, which decoding needs.
        second_reused_ms = time_ms(lambda: batch.prefill_second_text(cache))
        decode_step_ms = time_ms(lambda: batch.decode(cache))
    return Timings(
        side_px=side_px,
        batch_size=batch.size,
        num_image_tokens=batch.grid**2,
        num_prompt_tokens=len(batch.prompts.ids(0)),
        num_second_text_tokens=len(batch.prompts.texts[1]),
        logits_error=float((afresh - reused).norm() / afresh.norm()),
        same_first_token_share=float((afresh.argmax(-1) == reused.argmax(-1)).float().mean()),
        tower_ms=tower_ms,
        first_ms=first_ms,
        second_afresh_ms=second_afresh_ms,
        second_reused_ms=second_reused_ms,
        decode_step_ms=decode_step_ms,
    )


def median_ms(work: Callable[[], Any], num_repetitions: int) -> float:
    """The median over the repetitions, without the first runs; timed by device events on a GPU."""
    import torch

    once_ms = _gpu_ms if torch.cuda.is_available() else _cpu_ms
    return median([once_ms(work) for _ in range(NUM_WARMUPS + num_repetitions)][NUM_WARMUPS:])


def _gpu_ms(work: Callable[[], Any]) -> float:
    import torch

    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    work()
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end))


def _cpu_ms(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return 1e3 * (time.perf_counter() - started)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.second_question", description=__doc__)
    parser.add_argument("--shape", choices=list(SHAPES), default="7b")
    parser.add_argument("--sides", type=int, nargs="+", default=[448, 896], help="of the images, in pixels")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--num-repetitions", type=int, default=5)
    parser.add_argument("--first-tokens", type=int, default=32, help="length of the reply to the first prompt")
    parser.add_argument("--second-tokens", type=int, default=8, help="length of the reply to the second prompt")
    sizes = Sizes(**parse_options(parser, DRY_RUN))
    import torch

    record = Record(sizes)
    with timed("model"):
        tokenizer = build_tokenizer(sizes.shape)
        model = build_model(build_config(sizes.shape, tokenizer)).eval()
    if not torch.cuda.is_available():
        model = model.float()
    with GpuMonitor() as monitor:
        for side_px in sizes.sides:
            for batch_size in sizes.batch_sizes:
                name, started_s = f"{side_px} x {side_px}, batch {batch_size}", time.monotonic()
                try:
                    with timed(name):
                        timings = measure(Batch(model, tokenizer, side_px, batch_size), side_px, sizes.num_repetitions)
                except torch.OutOfMemoryError as error:
                    record.fail(name, f"out of memory: {error}")
                    continue
                totals = Totals.of(timings, sizes.first_tokens, sizes.second_tokens)
                record.add(name, asdict(timings) | asdict(totals) | monitor.between(started_s, time.monotonic()))
    return record.exit_code


if __name__ == "__main__":
    sys.exit(main())
