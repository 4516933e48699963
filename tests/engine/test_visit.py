"""The teacher's work on an image with real vLLM: the second question finds the whole image in the cache."""

from __future__ import annotations

import asyncio
import io
import json
import random
import shutil
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

from mpa_ray.config import AnnotateConfig, AnswerConfig, ModelConfig, SamplingConfig, VllmEngineConfig, resolve_path
from mpa_ray.demo.world import Scene, WorldSpec, paint, sample_scene
from mpa_ray.engine.instrumented import Instrumented
from mpa_ray.engine.probe import answer_probe
from mpa_ray.engine.protocol import EncodedImage, EngineDied, Reply, Request, RequestRefused
from mpa_ray.engine.vllm.arguments import engine_arguments
from mpa_ray.engine.vllm.engine import VllmEngine
from mpa_ray.engine.vllm.rendering import RawImages, RenderingProcesses, RenderingThread, scaling_of
from mpa_ray.imaging.decode import ImageProblem
from mpa_ray.imaging.prepare import ImageScaling, PreparedImage, prepare
from mpa_ray.models.chat_template import load_processor, render
from mpa_ray.observability.usage import Load, Usage
from mpa_ray.records import Annotation, ImageRef, Reason, State
from mpa_ray.stages.annotate import Annotate
from mpa_ray.stages.image_work import ImageWork
from mpa_ray.stages.visits import Attempt, Visits
from mpa_ray.tasks.library import TASKS
from tests.families import file_of, picture

MODEL = resolve_path("bundled:demo/models/teacher")
TASK = TASKS["demo_world"]
SERVING = VllmEngineConfig(dtype="float32", max_model_len=512, num_renderers=1)
CONFIG = ModelConfig(model=MODEL, engine=SERVING, min_pixels=3136, max_pixels=12544)
T = TypeVar("T")
Run = Callable[[Awaitable[T]], T]


def scenes(count: int) -> list[Scene]:
    rng = random.Random(4242)
    return [sample_scene(WorldSpec(), rng) for _ in range(count)]


def content_of(scene: Scene) -> bytes:
    buffer = io.BytesIO()
    paint(scene).save(buffer, "PNG")
    return buffer.getvalue()


def prepared(scene: Scene) -> PreparedImage:
    image = prepare(content_of(scene), CONFIG.min_pixels, CONFIG.max_pixels)
    assert isinstance(image, PreparedImage)
    return image


@pytest.fixture(scope="module")
def run() -> Iterator[Run[Any]]:
    """One event loop for the module: an engine replies only in the loop of its first request."""
    with asyncio.Runner() as runner:
        yield lambda coroutine: runner.run(coroutine)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The bundled teacher, with a processor that accepts images of a million pixels."""
    copy = shutil.copytree(MODEL, tmp_path_factory.mktemp("models") / "teacher")
    settings = copy / "processor_config.json"
    settings.write_text(settings.read_text().replace('"longest_edge": 12544', '"longest_edge": 1048576'))
    return str(copy)


@pytest.fixture(scope="module")
def engine(run: Run[Any], checkpoint: str) -> Iterator[VllmEngine]:  # noqa: ARG001
    engine = VllmEngine(CONFIG.model_copy(update={"model": checkpoint}), SERVING, max_images_in_flight=32)
    yield engine
    engine.close()


async def rendered_in_a_thread(arguments: dict[str, Any], pixel_limits: tuple[int, int, int], content: bytes) -> Any:
    thread = RenderingThread(arguments, pixel_limits)
    try:
        return await thread.render_image(content)
    finally:
        thread.close()


async def ask(engine: VllmEngine, scene: Scene, text: str, sampling: SamplingConfig | None = None) -> Reply:
    image = await engine.encode_image("an image", content_of(scene))
    assert not isinstance(image, ImageProblem)
    return await engine.generate(image, Request(text, sampling or SamplingConfig()))


def annotate(engine: VllmEngine, max_new_tokens: int = 48) -> Annotate:
    return Annotate(
        engine, TASK, AnnotateConfig(sampling=SamplingConfig(max_new_tokens=max_new_tokens)), AnswerConfig()
    )


def visited(run: Run[Any], stage: Annotate, count: int) -> list[Annotation]:
    images = [
        ImageWork(f"{i}", f"/{i}", (ImageRef(f"{i}", f"/{i}"),), content_of(scene))
        for i, scene in enumerate(scenes(count))
    ]

    async def visit() -> list[Annotation]:
        slots = asyncio.Semaphore(stage.teacher.max_images_in_flight)

        async def one(work: ImageWork[ImageRef]) -> list[Annotation]:
            async with slots:
                return await stage.visit(work)

        return [row for rows in await asyncio.gather(*map(one, images)) for row in rows]

    rows: list[Annotation] = run(visit())
    return rows


def test_the_second_pass_computes_no_image_token_again(run: Run[Any], engine: VllmEngine) -> None:
    rows = visited(run, annotate(engine), 64)
    answered = [row for row in rows if row.second_answer is not None]
    assert len(answered) >= 48
    assert {row.num_uncached_image_tokens for row in answered} == {0}
    # 64 of about 100 tokens: two whole blocks, the second of which ends after the image.
    assert all(row.num_second_cached_tokens >= 64 for row in answered)


def test_the_teacher_writes_pairs_and_agrees_with_itself(run: Run[Any], engine: VllmEngine) -> None:
    rows = visited(run, annotate(engine), 64)
    assert sum(row.state == "kept" for row in rows) >= 60
    assert sum(row.answer == row.second_answer for row in rows) >= 48
    assert all(row.question and row.question.endswith("?") for row in rows if row.state == "kept")


def test_the_parser_reads_what_the_bundled_teacher_writes(run: Run[Any], engine: VllmEngine) -> None:
    # The demo's sampling.
    sampling = SamplingConfig(temperature=1.0, top_p=0.98, max_new_tokens=48)
    rows = visited(run, Annotate(engine, TASK, AnnotateConfig(sampling=sampling), AnswerConfig()), 200)
    refused = [(row.reason, row.reply) for row in rows if row.question is None]
    assert len(refused) <= 0.02 * len(rows), refused


def test_a_cut_off_reply_is_dropped(run: Run[Any], engine: VllmEngine) -> None:
    rows = visited(run, annotate(engine, max_new_tokens=3), 4)
    assert [(row.state, row.reason) for row in rows] == [("dropped", Reason.REPLY_TRUNCATED.value)] * 4


def test_four_questions_about_an_image_differ_and_each_has_a_second_answer(run: Run[Any], engine: VllmEngine) -> None:
    sampling = SamplingConfig(temperature=1.0, max_new_tokens=48)
    rows = visited(run, Annotate(engine, TASK, AnnotateConfig(sampling=sampling, num_questions=4), AnswerConfig()), 24)
    assert [row.annotation_id for row in rows] == [f"{image}#{n}" for image in range(24) for n in range(4)]
    kept = [row for row in rows if row.state == "kept"]
    assert len({(row.image_id, row.question) for row in kept}) == len(kept) >= 48
    assert all(row.second_answer for row in kept)
    assert {row.num_uncached_image_tokens for row in kept} == {0}


def test_replies_are_json_if_the_format_asks_for_it(run: Run[Any], engine: VllmEngine) -> None:
    sampling = SamplingConfig(temperature=1.0, max_new_tokens=320)
    rows = visited(run, Annotate(engine, TASK, AnnotateConfig(sampling=sampling, reply="json"), AnswerConfig()), 24)
    ended = [row for row in rows if row.finish_reason == "stop"]
    assert len(ended) >= 20
    for row in ended:
        # The grammar allows control characters in a string, and so does the parser.
        assert set(json.loads(row.reply or "", strict=False)) == {"question", "answer"}
    # This teacher never learned JSON, so its questions make little sense, but they are pairs.
    assert sum(row.question is not None for row in ended) >= 16


def test_a_constrained_reply_that_is_cut_off_is_dropped(run: Run[Any], engine: VllmEngine) -> None:
    sampling = SamplingConfig(max_new_tokens=8)
    rows = visited(run, Annotate(engine, TASK, AnnotateConfig(sampling=sampling, reply="json"), AnswerConfig()), 4)
    assert [(row.state, row.reason) for row in rows] == [("dropped", Reason.REPLY_TRUNCATED.value)] * 4


def test_a_prompt_that_is_too_long_is_refused_and_the_engine_lives(run: Run[Any], engine: VllmEngine) -> None:
    (scene,) = scenes(1)
    with pytest.raises(RequestRefused) as caught:
        run(ask(engine, scene, "word " * 2000))
    assert caught.value.reason == Reason.PROMPT_TOO_LONG
    assert run(ask(engine, scene, TASK.answer_prompt("What?"))).text


def test_a_special_token_in_a_question_is_refused_and_the_engine_lives(run: Run[Any], engine: VllmEngine) -> None:
    (scene,) = scenes(1)
    with pytest.raises(RequestRefused) as caught:
        run(ask(engine, scene, TASK.answer_prompt("What is <|image_pad|>?")))
    assert (caught.value.reason, caught.value.state) == (Reason.SPECIAL_TOKEN_IN_TEXT, State.DROPPED)
    assert run(ask(engine, scene, TASK.answer_prompt("What?"))).text


def test_greedy_answers_equal_those_of_transformers(run: Run[Any], engine: VllmEngine) -> None:
    processor = load_processor(MODEL)
    model = AutoModelForImageTextToText.from_pretrained(MODEL, dtype=torch.float32).eval()
    for scene in scenes(6):
        image, text = prepared(scene), TASK.answer_prompt("How many objects are there?")
        reply = run(ask(engine, scene, text, SamplingConfig(max_new_tokens=8)))
        inputs = processor(text=[render(processor, text)], images=[image.image], return_tensors="pt")
        out = model.generate(**inputs, max_new_tokens=8, do_sample=False)
        expected = processor.tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        assert reply.text == expected
        assert reply.num_prompt_tokens == inputs["input_ids"].shape[1]


def test_a_rendered_image_gets_the_same_reply_as_a_raw_one(run: Run[Any], engine: VllmEngine) -> None:
    sampling = SamplingConfig(max_new_tokens=48)
    arguments = engine_arguments(CONFIG, SERVING, on_cpu=True, adapters={})
    thread = RenderingThread(arguments, CONFIG.pixel_limits)

    async def each_way(scene: Scene, text: str) -> list[Reply]:
        image, rendered = prepared(scene), await thread.render_image(content_of(scene))
        # Different keys, so that neither request finds the other's work in a cache.
        images = [EncodedImage("raw", f"{image.key}-raw", image.image), EncodedImage("thread", image.key, rendered)]
        request = Request(text, sampling)
        return [await ask(engine, scene, text, sampling), *[await engine.generate(i, request) for i in images]]

    for scene in scenes(16):
        for text in (TASK.annotation_prompt(), TASK.answer_prompt("How many objects are there?")):
            replies = run(each_way(scene, text))
            assert len({(reply.text, reply.num_prompt_tokens, reply.image_end) for reply in replies}) == 1
    thread.close()


def test_an_image_that_the_processor_would_scale_again_keeps_its_size(run: Run[Any], engine: VllmEngine) -> None:
    processor, text, size = load_processor(MODEL), TASK.answer_prompt("What is in the image?"), (1500, 12)
    alone = processor(text=[render(processor, text)], images=[picture(size)], return_tensors="pt")
    assert alone["image_grid_thw"].tolist() == [[1, 2, 46]]
    prepared = ImageScaling.of(processor, *CONFIG.pixel_limits).prepare(file_of(size))
    assert isinstance(prepared, PreparedImage)
    again = processor(text=[render(processor, text)], images=[prepared.image], return_tensors="pt")
    assert again["image_grid_thw"].tolist() != alone["image_grid_thw"].tolist()
    arguments = engine_arguments(CONFIG, SERVING, on_cpu=True, adapters={})
    rendered = run(rendered_in_a_thread(arguments, CONFIG.pixel_limits, file_of(size)))
    image = EncodedImage("wide", prepared.key, rendered)
    reply = run(engine.generate(image, Request(text, SamplingConfig(max_new_tokens=8))))
    assert reply.num_prompt_tokens == alone["input_ids"].shape[1]


def test_tensors_that_the_engine_has_evicted_are_sent_again(run: Run[Any], engine: VllmEngine) -> None:
    (scene,) = scenes(1)

    async def both() -> tuple[Reply, Reply]:
        image = await engine.encode_image("an image", content_of(scene))
        assert not isinstance(image, ImageProblem)
        # The engine never received tensors under this hash.
        inputs = replace(image.inputs, is_in_engine=True, engine_input=renamed(image.inputs))
        evicted = EncodedImage("evicted", "evicted", inputs)
        request = Request(TASK.annotation_prompt(), SamplingConfig(max_new_tokens=48))
        return await engine.generate(image, request), await engine.generate(evicted, request)

    def renamed(rendered: Any) -> dict[str, Any]:
        return {**rendered.engine_input, "mm_hashes": {"image": ["evicted"]}}

    cached, again = run(both())
    assert cached.text == again.text
    assert again.num_cached_tokens < again.image_end


def test_a_vllm_without_a_renderer_gets_raw_prompts(
    run: Run[Any], engine: VllmEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    rendered = visited(run, annotate_greedily(engine), 8)
    monkeypatch.setattr(
        engine, "renderer", RawImages(scaling_of(load_processor(CONFIG.model), {}, CONFIG.pixel_limits))
    )
    raw = visited(run, annotate_greedily(engine), 8)

    def pairs(rows: list[Annotation]) -> list[tuple[str | None, ...]]:
        return [(row.state, row.question, row.answer, row.second_answer) for row in rows]

    assert pairs(rendered) == pairs(raw)
    assert {row.num_uncached_image_tokens for row in raw if row.second_answer} == {0}


def annotate_greedily(engine: VllmEngine) -> Annotate:
    config = AnnotateConfig(sampling=SamplingConfig(temperature=0, max_new_tokens=48))
    return Annotate(engine, TASK, config, AnswerConfig())


def test_the_renderer_reports_a_file_that_it_cannot_decode(run: Run[Any], engine: VllmEngine) -> None:
    problem = run(engine.encode_image("x", b"<svg/>"))
    assert isinstance(problem, ImageProblem)
    assert problem.reason == Reason.UNSUPPORTED_FORMAT


def test_an_image_that_is_too_large_to_decode_has_a_row_and_the_engine_lives(run: Run[Any], engine: VllmEngine) -> None:
    buffer = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(buffer, "PNG")
    work = ImageWork("bomb", "/bomb", (ImageRef("bomb", "/bomb"),), buffer.getvalue())
    (row,) = run(annotate(engine).visit(work))
    assert (row.state, row.reason) == ("failed", Reason.TOO_MANY_PIXELS)
    assert run(ask(engine, scenes(1)[0], TASK.answer_prompt("What?"))).text


@pytest.mark.parametrize("is_rendered", [False, True])
def test_an_image_with_too_many_tokens_is_refused_and_the_engine_lives(
    run: Run[Any], engine: VllmEngine, checkpoint: str, is_rendered: bool
) -> None:
    # 1,296 tokens of 28 x 28 pixels each; a prompt may have 512 tokens.
    image: Any = Image.new("RGB", (1008, 1008), "teal")
    if is_rendered:
        arguments = engine_arguments(CONFIG.model_copy(update={"model": checkpoint}), SERVING, on_cpu=True, adapters={})
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        image = run(rendered_in_a_thread(arguments, (3136, 1008 * 1008, 1008 * 1008), buffer.getvalue()))
    large = EncodedImage("large", f"large-{is_rendered}", image)
    with pytest.raises(RequestRefused) as caught:
        run(engine.generate(large, Request(TASK.answer_prompt("What?"), SamplingConfig())))
    assert (caught.value.reason, caught.value.state) == (Reason.PROMPT_TOO_LONG, State.DROPPED)
    assert run(ask(engine, scenes(1)[0], TASK.answer_prompt("What?"))).text


def test_the_error_says_why_a_renderer_cannot_start(run: Run[Any]) -> None:
    processes = RenderingProcesses(1, {"model": MODEL, "no_such_argument": 1}, (3136, 12544))
    with pytest.raises(EngineDied, match=r"cannot start \(TypeError: .*no_such_argument"):
        run(processes.render_image(b""))
    processes.close()


def test_an_engine_answers_the_probe_picture(run: Run[Any], engine: VllmEngine) -> None:
    usage = Usage()
    run(answer_probe(Instrumented(engine, usage, Load())))
    assert usage.num_output_tokens > 0


class LastDeath:
    """A log of attempts that keeps its last report of a death."""

    def __init__(self) -> None:
        self.in_flight: dict[str, Sequence[str]] = {}

    async def begin(self, shard: str, generation: int, images: Sequence[str]) -> Attempt:  # noqa: ARG002
        return Attempt(number=1)

    async def visited(self, shard: str) -> None: ...

    async def next_group(self, shard: str) -> Sequence[str]:  # noqa: ARG002
        return ()

    async def begin_probe(self) -> None: ...

    async def end_probe(self) -> None: ...

    async def died(self, in_flight: Mapping[str, Sequence[str]], error: str) -> None:  # noqa: ARG002
        self.in_flight = dict(in_flight)


def test_the_log_names_the_images_that_were_in_an_engine_when_it_died(run: Run[Any], engine: VllmEngine) -> None:
    """No later test may use the engine: outside a test its actor would now be replaced."""
    log, load, deaths = LastDeath(), Load(), []
    (core,) = [child for child in psutil.Process().children(recursive=True) if "EngineCore" in child.name()]

    async def die(error: str) -> None:
        deaths.append(error)

    async def kill_in_the_middle() -> None:
        stage = Annotate(Instrumented(engine, Usage(), load), TASK, AnnotateConfig(), AnswerConfig())
        visits = Visits(stage, 8, log, die, load=load)
        works = [ImageWork(f"{i}", "", (ImageRef(f"{i}", ""),), content_of(s)) for i, s in enumerate(scenes(64))]
        task = asyncio.ensure_future(visits.visit("000000", works))
        while load.num_in_engine < 4:
            await asyncio.sleep(0)
        core.kill()
        await task

    with pytest.raises(ExceptionGroup) as caught:
        run(kill_in_the_middle())
    assert caught.group_contains(EngineDied)
    assert len(deaths) == 1
    assert 4 <= len(log.in_flight["000000"]) <= 8


def test_the_death_of_a_renderer_counts_as_the_engines_death(run: Run[Any], engine: VllmEngine) -> None:
    assert isinstance(engine.renderer, RenderingProcesses)
    (renderer,) = map(psutil.Process, engine.renderer.pool._processes)
    renderer.kill()
    with pytest.raises(EngineDied, match="renderer"):
        run(engine.encode_image("x", content_of(scenes(1)[0])))


def test_the_bundled_checkpoints_are_small() -> None:
    for name in ("teacher", "student", "student-internvl"):
        folder = Path(resolve_path(f"bundled:demo/models/{name}"))
        assert sum(f.stat().st_size for f in folder.iterdir()) <= 12e6
