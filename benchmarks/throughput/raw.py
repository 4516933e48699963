"""Rows `ceiling` and `b`: vLLM without this project.

`ceiling` sends the two requests of a visit to an asynchronous engine. They are rendered before the clock starts, in one
process and without Ray. `b` is what a script with `LLM.generate` does: three full passes over all images.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Awaitable, Iterable, Sequence
from typing import Any

from benchmarks.throughput.work import QUESTION, TASK, Timings, Work, bind_cores, steady_rates
from mpa_ray.imaging.prepare import PreparedImage, prepare
from mpa_ray.models.chat_template import load_processor, render


def arguments(work: Work, model: str) -> dict[str, Any]:
    """vLLM's arguments for a model, the same in both rows."""
    return {
        "model": model,
        "dtype": work.dtype,
        "max_num_seqs": work.max_num_seqs,
        "max_model_len": work.max_model_len,
        "block_size": 32,
        "enforce_eager": True,
        "limit_mm_per_prompt": {"image": 1, "video": 0},
    }


def prepared_images(work: Work, suffix: str) -> list[PreparedImage]:
    """The images, decoded and scaled, with keys that no engine's cache knows."""
    images = []
    for file in work.files():
        image = prepare(file.read_bytes(), 56 * 56, work.image_size**2)
        assert isinstance(image, PreparedImage)
        images.append(PreparedImage(image.image, f"{file.name}-{suffix}"))
    return images


# --- the ceiling -----------------------------------------------------------------------------------------------------


class RawEngine:
    """An asynchronous vLLM engine and its own renderer."""

    def __init__(self, work: Work, model: str) -> None:
        from vllm import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        # Every request carries its tensors, so a cache of them would only cost copies.
        settings = AsyncEngineArgs(**arguments(work, model), mm_processor_cache_gb=0)
        self._engine = AsyncLLM.from_engine_args(settings)
        self._processor = load_processor(model)
        self.image_token: int = self._processor.tokenizer.convert_tokens_to_ids(self._processor.image_token)

    def render(self, image: PreparedImage, text: str) -> Any:
        """A request about the image, ready to be sent."""
        prompt = {
            "prompt": render(self._processor, text),
            "multi_modal_data": {"image": image.image},
            "multi_modal_uuids": {"image": image.key},
        }
        (rendered,) = self._engine.renderer.render_cmpl([prompt], skip_mm_cache=True)
        return {name: value for name, value in rendered.items() if name != "arrival_time"}

    async def reply(self, request: Any, max_tokens: int, name: str) -> Any:
        """vLLM's output for a request; its name is new each time."""
        async for output in self._engine.generate(request, _sampling(max_tokens), name):
            final = output
        return final

    def shutdown(self) -> None:
        self._engine.shutdown()


def _sampling(max_tokens: int) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(temperature=0, max_tokens=max_tokens, logprobs=0, output_kind=RequestOutputKind.FINAL_ONLY)


async def ceiling(work: Work) -> Timings:
    """Time the teacher's visits, and the student's answers if there is a student."""
    timings = Timings([], [])
    questions = await TeacherVisits(work).measure(timings)
    if work.student is not None:
        timings.student_images_per_s = await _student_rates(work, work.student, questions)
    return timings


Pair = tuple[Any, Any]
"""The two requests of a visit."""


class TeacherVisits:
    """Visits to all images, and how long their requests took."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._engine = RawEngine(work, work.teacher)
        self._slots = asyncio.Semaphore(work.max_images_in_flight)
        self._questions = [QUESTION] * work.num_images
        self._restart()

    def _restart(self) -> None:
        self._done: list[tuple[float, int]] = []
        self._first_s = self._second_s = 0.0
        self._num_uncached_image_tokens = 0

    async def measure(self, timings: Timings) -> list[str]:
        """Set the teacher's rates; returns its questions, which are the same each time, since decoding is greedy."""
        work = self._work
        # Warms the engine up, and finds the questions.
        await _gather(self._visit(n, pair, f"warm-{n}") for n, pair in enumerate(self._pairs(range(1))))
        # One repetition more than is measured, since the engine fills and empties in between.
        pairs = self._pairs(range(1, 2 + work.repetitions))
        self._restart()
        await _gather(self._visit(n % work.num_images, pair, f"{n}") for n, pair in enumerate(pairs))
        timings.teacher_images_per_s = steady_rates(self._done, work.num_images, work.max_images_in_flight)
        timings.second_pass_share = self._second_s / (self._first_s + self._second_s)
        timings.num_uncached_image_tokens = self._num_uncached_image_tokens
        pairs = self._pairs(range(2 + work.repetitions, 3 + 2 * work.repetitions))
        self._restart()
        await _gather(self._first_pass(first, f"first-{n}") for n, (first, _) in enumerate(pairs))
        timings.first_pass_images_per_s = steady_rates(self._done, work.num_images, work.max_images_in_flight)
        self._engine.shutdown()
        return self._questions

    def _pairs(self, repetitions: Iterable[int]) -> list[Pair]:
        """The rendered requests of these repetitions."""
        return [
            (
                self._engine.render(image, TASK.annotation_prompt()),
                self._engine.render(image, TASK.answer_prompt(question)),
            )
            for repetition in repetitions
            for image, question in zip(prepared_images(self._work, f"{repetition}"), self._questions, strict=True)
        ]

    async def _visit(self, number: int, pair: Pair, name: str) -> None:
        first, second = pair
        async with self._slots:
            started = time.perf_counter()
            annotation = await self._engine.reply(first, self._work.first_tokens, f"{name}-1")
            between = time.perf_counter()
            self._questions[number] = self._work.question_of(annotation.outputs[0].text)
            answer = await self._engine.reply(second, self._work.second_tokens, f"{name}-2")
            ended = time.perf_counter()
        self._first_s += between - started
        self._second_s += ended - between
        self._done.append((ended, 1))
        tokens = answer.prompt_token_ids
        image_end = len(tokens) - tokens[::-1].index(self._engine.image_token)
        self._num_uncached_image_tokens += max(0, image_end - (answer.num_cached_tokens or 0))

    async def _first_pass(self, request: Any, name: str) -> None:
        async with self._slots:
            await self._engine.reply(request, self._work.first_tokens, name)
        self._done.append((time.perf_counter(), 1))


async def _student_rates(work: Work, model: str, questions: Sequence[str]) -> list[float]:
    engine = RawEngine(work, model)
    slots = asyncio.Semaphore(work.max_images_in_flight)
    done: list[tuple[float, int]] = []

    async def answer(request: Any, name: str) -> None:
        async with slots:
            await engine.reply(request, work.second_tokens, name)
        done.append((time.perf_counter(), 1))

    def requests(repetitions: Iterable[int]) -> list[Any]:
        return [
            engine.render(image, TASK.answer_prompt(question))
            for repetition in repetitions
            for image, question in zip(prepared_images(work, f"{repetition}"), questions, strict=True)
        ]

    await _gather(answer(request, f"warm-{n}") for n, request in enumerate(requests(range(1))))
    measured = requests(range(1, 2 + work.repetitions))
    done = []
    await _gather(answer(request, f"{n}") for n, request in enumerate(measured))
    engine.shutdown()
    return steady_rates(done, work.num_images, work.max_images_in_flight)


async def _gather(coroutines: Iterable[Awaitable[None]]) -> None:
    await asyncio.gather(*coroutines)


# --- LLM.generate ----------------------------------------------------------------------------------------------------


class SynchronousEngine:
    """`LLM.generate` over all images at once."""

    def __init__(self, work: Work, model: str) -> None:
        from vllm import LLM

        self._llm, self._processor = LLM(**arguments(work, model)), load_processor(model)

    def replies(self, images: Sequence[PreparedImage], texts: Sequence[str], max_tokens: int) -> list[str]:
        """One reply for each image, to the text of the same position."""
        from vllm import SamplingParams

        prompts = [
            {"prompt": render(self._processor, text), "multi_modal_data": {"image": image.image}}
            for image, text in zip(images, texts, strict=True)
        ]
        sampling = SamplingParams(temperature=0, max_tokens=max_tokens)
        return [output.outputs[0].text for output in self._llm.generate(prompts, sampling, use_tqdm=False)]

    def empty_caches(self) -> None:
        """As in a corpus so large that nothing of an image is cached when the next pass reaches it."""
        self._llm.reset_prefix_cache()
        self._llm.reset_mm_cache()


def three_passes(work: Work) -> Timings:
    """The teacher annotates all images and answers all questions, then the student answers them."""
    timings = Timings([], [])
    questions = _teacher_passes(work, timings)
    if work.student is not None:
        _student_passes(work, work.student, questions, timings)
    return timings


def _teacher_passes(work: Work, timings: Timings) -> list[str]:
    """Annotate and answer in each repetition, of which the first warms the engine up; returns the questions."""
    engine = SynchronousEngine(work, work.teacher)
    questions: list[str] = []
    for repetition in range(work.repetitions + 1):
        started = time.perf_counter()
        images = prepared_images(work, "")
        annotations = engine.replies(images, [TASK.annotation_prompt()] * len(images), work.first_tokens)
        questions = [work.question_of(annotation) for annotation in annotations]
        engine.empty_caches()
        engine.replies(images, [TASK.answer_prompt(question) for question in questions], work.second_tokens)
        if repetition:
            timings.teacher_images_per_s.append(work.num_images / (time.perf_counter() - started))
        engine.empty_caches()
    return questions


def _student_passes(work: Work, model: str, questions: Sequence[str], timings: Timings) -> None:
    engine = SynchronousEngine(work, model)
    for repetition in range(work.repetitions + 1):
        started = time.perf_counter()
        images = prepared_images(work, "")
        engine.replies(images, [TASK.answer_prompt(question) for question in questions], work.second_tokens)
        if repetition:
            timings.student_images_per_s.append(work.num_images / (time.perf_counter() - started))
        engine.empty_caches()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("row", choices=["ceiling", "b"])
    parser.add_argument("work")
    parser.add_argument("out")
    options = parser.parse_args()
    bind_cores()
    work = Work.load(options.work)
    timings = asyncio.run(ceiling(work)) if options.row == "ceiling" else three_passes(work)
    timings.save(options.out)


if __name__ == "__main__":
    main()
