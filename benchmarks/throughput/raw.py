"""Rows `ceiling` and `b`: vLLM by itself.

`ceiling` is the visit's two calls on an asynchronous engine, on requests that are rendered before the clock starts, in
one process and without Ray. `b` is what a script with `LLM.generate` does: three full passes over all images.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from typing import Any

from benchmarks.throughput.work import QUESTION, TASK, Timings, Work, bind_cores, steady_rates
from mpa_ray.imaging.decode import PreparedImage, prepare
from mpa_ray.models.chat_template import load_processor, render


def arguments(work: Work, model: str) -> dict[str, Any]:
    return {
        "model": model,
        "dtype": work.dtype,
        "max_num_seqs": work.max_num_seqs,
        "max_model_len": work.max_model_len,
        "block_size": 32,
        "enforce_eager": True,
        "limit_mm_per_prompt": {"image": 1, "video": 0},
    }


def prepared(work: Work, suffix: str) -> list[PreparedImage]:
    """Decoded and scaled, under names that no engine's cache knows."""
    found = []
    for file in work.files():
        image = prepare(file.read_bytes(), 56 * 56, work.image_size**2)
        assert isinstance(image, PreparedImage)
        found.append(PreparedImage(image.image, f"{file.name}-{suffix}"))
    return found


class Rendered:
    """Requests as an engine's renderer makes them."""

    def __init__(self, engine: Any, model: str) -> None:
        self._renderer, self._processor = engine.renderer, load_processor(model)

    def request(self, image: PreparedImage, text: str) -> Any:
        prompt = {
            "prompt": render(self._processor, text),
            "multi_modal_data": {"image": image.image},
            "multi_modal_uuids": {"image": image.key},
        }
        (rendered,) = self._renderer.render_cmpl([prompt], skip_mm_cache=True)
        return {name: value for name, value in rendered.items() if name != "arrival_time"}


async def ceiling(work: Work) -> Timings:
    found = Timings([], [], num_uncached_image_tokens=0)
    questions = await _visits(work, found)
    if work.student is not None:
        await _answers(work, work.student, questions, found)
    return found


def _start(work: Work, model: str) -> Any:
    from vllm import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    # Every request brings its tensors along; a cache of them would only cost copies.
    return AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments(work, model), mm_processor_cache_gb=0))


async def _visits(work: Work, found: Timings) -> list[str]:
    """Teacher's visits; returns the questions that it wrote, the same at each repetition, for it is greedy."""
    engine = _start(work, work.teacher)
    rendered, image_token = Rendered(engine, work.teacher), _image_token(work.teacher)
    first, second = _sampling(work.first_tokens), _sampling(work.second_tokens)
    slots = asyncio.Semaphore(work.max_images_in_flight)
    questions = [QUESTION] * work.num_images
    first_s = second_s = 0.0
    done: list[tuple[float, int]] = []

    async def first_pass(requests: tuple[Any, Any], name: str) -> None:
        async with slots:
            await _reply(engine, requests[0], first, name)
        done.append((time.perf_counter(), 1))

    async def visit(number: int, requests: tuple[Any, Any], name: str) -> None:
        nonlocal first_s, second_s
        async with slots:
            began = time.perf_counter()
            reply = await _reply(engine, requests[0], first, f"{name}-1")
            between = time.perf_counter()
            questions[number] = work.question_of(reply.outputs[0].text)
            again = await _reply(engine, requests[1], second, f"{name}-2")
            ended = time.perf_counter()
        first_s, second_s = first_s + between - began, second_s + ended - between
        done.append((ended, 1))
        tokens = again.prompt_token_ids
        image_end = len(tokens) - tokens[::-1].index(image_token)
        found.num_uncached_image_tokens = (found.num_uncached_image_tokens or 0) + max(
            0, image_end - (again.num_cached_tokens or 0)
        )

    def requests(repetition: int) -> list[tuple[Any, Any]]:
        images = prepared(work, f"{repetition}")
        return [
            (rendered.request(image, TASK.annotation_prompt()), rendered.request(image, TASK.answer_prompt(question)))
            for image, question in zip(images, questions, strict=True)
        ]

    # Warms the engine up, and tells which questions will be asked.
    await asyncio.gather(*(visit(n, r, f"warm-{n}") for n, r in enumerate(requests(0))))
    # One more than is measured: while the engine fills and while it empties does not count.
    prepared_requests = [r for repetition in range(work.repetitions + 1) for r in requests(1 + repetition)]
    done, found.num_uncached_image_tokens, first_s, second_s = [], 0, 0.0, 0.0
    await asyncio.gather(*(visit(n % work.num_images, r, f"{n}") for n, r in enumerate(prepared_requests)))
    found.teacher_images_per_s = steady_rates(done, work.num_images, work.max_images_in_flight)
    found.second_pass_share = second_s / (first_s + second_s)
    repetitions = range(2 + work.repetitions, 3 + 2 * work.repetitions)
    prepared_requests = [r for repetition in repetitions for r in requests(repetition)]
    done = []
    await asyncio.gather(*(first_pass(r, f"first-{n}") for n, r in enumerate(prepared_requests)))
    found.first_pass_images_per_s = steady_rates(done, work.num_images, work.max_images_in_flight)
    engine.shutdown()
    return questions


async def _answers(work: Work, model: str, questions: list[str], found: Timings) -> None:
    engine = _start(work, model)
    rendered, sampling = Rendered(engine, model), _sampling(work.second_tokens)
    slots = asyncio.Semaphore(work.max_images_in_flight)
    done: list[tuple[float, int]] = []

    async def answer(request: Any, name: str) -> None:
        async with slots:
            await _reply(engine, request, sampling, name)
        done.append((time.perf_counter(), 1))

    def requests(repetition: int) -> list[Any]:
        images = prepared(work, f"{repetition}")
        return [rendered.request(i, TASK.answer_prompt(q)) for i, q in zip(images, questions, strict=True)]

    await asyncio.gather(*(answer(r, f"warm-{n}") for n, r in enumerate(requests(0))))
    prepared_requests = [r for repetition in range(work.repetitions + 1) for r in requests(1 + repetition)]
    done = []
    await asyncio.gather(*(answer(r, f"{n}") for n, r in enumerate(prepared_requests)))
    found.student_images_per_s = steady_rates(done, work.num_images, work.max_images_in_flight)
    engine.shutdown()


async def _reply(engine: Any, request: Any, sampling: Any, name: str) -> Any:
    async for output in engine.generate(request, sampling, name):
        final = output
    return final


def _image_token(model: str) -> int:
    processor = load_processor(model)
    token: int = processor.tokenizer.convert_tokens_to_ids(processor.image_token)
    return token


def _sampling(max_tokens: int) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(temperature=0, max_tokens=max_tokens, logprobs=0, output_kind=RequestOutputKind.FINAL_ONLY)


def three_passes(work: Work) -> Timings:
    """Annotate all, answer all, have the student answer all; each with one call of `LLM.generate`."""
    found = Timings([], [])
    questions = _synchronous(work, work.teacher, None, found.teacher_images_per_s)
    if work.student is not None:
        _synchronous(work, work.student, questions, found.student_images_per_s)
    return found


def _synchronous(work: Work, model: str, questions: list[str] | None, images_per_s: list[float]) -> list[str]:
    """A model's passes: two where it writes the questions itself, one where they are given."""
    from vllm import LLM, SamplingParams

    llm, processor = LLM(**arguments(work, model)), load_processor(model)

    def answered(images: list[PreparedImage], texts: list[str], max_tokens: int) -> list[str]:
        prompts = [
            {"prompt": render(processor, t), "multi_modal_data": {"image": i.image}}
            for i, t in zip(images, texts, strict=True)
        ]
        outputs = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=max_tokens), use_tqdm=False)
        return [output.outputs[0].text for output in outputs]

    asked: list[str] = questions or []
    for repetition in range(work.repetitions + 1):
        started = time.perf_counter()
        images = prepared(work, "")
        if questions is None:
            replies = answered(images, [TASK.annotation_prompt()] * len(images), work.first_tokens)
            asked = [work.question_of(reply) for reply in replies]
            # So large a corpus that nothing of an image is left in a cache when the second pass comes to it.
            llm.reset_prefix_cache()
            llm.reset_mm_cache()
        answered(images, [TASK.answer_prompt(question) for question in asked], work.second_tokens)
        if repetition:
            images_per_s.append(work.num_images / (time.perf_counter() - started))
        llm.reset_prefix_cache()
        llm.reset_mm_cache()
    return asked


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("row", choices=["ceiling", "b"])
    parser.add_argument("work")
    parser.add_argument("out")
    options = parser.parse_args()
    bind_cores()
    work = Work.load(options.work)
    found = asyncio.run(ceiling(work)) if options.row == "ceiling" else three_passes(work)
    found.save(options.out)


if __name__ == "__main__":
    main()
