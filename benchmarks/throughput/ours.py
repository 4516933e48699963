"""Rows `d`, `e` and `f`: this project's own passes with Ray Data, with all rows written and committed.

In `d` the teacher annotates all images in one pass and answers in another. `e` is the shared visit with raw prompts.
`f` is the shared visit as shipped, which renders each image once for all prompts about it.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.throughput.work import QUESTION, TASK, Timings, Work, rates
from mpa_ray.config import ModelConfig, RunConfig
from mpa_ray.corpus.read import Reader
from mpa_ray.engine.protocol import EncodedImage, Reply, Request, VisionLanguageModel
from mpa_ray.imaging.decode import ImageProblem
from mpa_ray.imaging.prepare import prepare_in_thread
from mpa_ray.matching import MATCHERS
from mpa_ray.phases.context import RunContext
from mpa_ray.phases.index import index
from mpa_ray.pipeline.cluster import start_ray
from mpa_ray.pipeline.graph import stream_pass
from mpa_ray.pipeline.pass_spec import Pass
from mpa_ray.run.phase_record import PhaseKey
from mpa_ray.run.run import Run
from mpa_ray.stages.annotate import Annotate
from mpa_ray.stages.identify import Identify, WorthAsking
from mpa_ray.stages.image_work import Stage


@dataclass(frozen=True)
class Readable:
    """A model with random weights whose replies are replaced by readable ones, after it has done all the work."""

    model: VisionLanguageModel

    @property
    def max_images_in_flight(self) -> int:
        return self.model.max_images_in_flight

    async def encode_image(self, image_id: str, content: bytes) -> EncodedImage | ImageProblem:
        return await self.model.encode_image(image_id, content)

    async def generate(self, image: EncodedImage, request: Request) -> Reply:
        reply = await self.model.generate(image, request)
        written = f"Question: {QUESTION}\nAnswer: 3" if request.text == TASK.annotation_prompt() else "3"
        return replace(reply, text=written, finish_reason="stop")

    def close(self) -> None:
        self.model.close()


@dataclass(frozen=True)
class Raw:
    """An engine that gets raw images and prompts, as with a vLLM without a callable renderer."""

    model: VisionLanguageModel
    min_pixels: int
    max_pixels: int

    @property
    def max_images_in_flight(self) -> int:
        return self.model.max_images_in_flight

    async def encode_image(self, image_id: str, content: bytes) -> EncodedImage | ImageProblem:
        prepared = await prepare_in_thread(content, self.min_pixels, self.max_pixels)
        return prepared if isinstance(prepared, ImageProblem) else EncodedImage(image_id, prepared.key, prepared.image)

    async def generate(self, image: EncodedImage, request: Request) -> Reply:
        return await self.model.generate(image, request)

    def close(self) -> None:
        self.model.close()


class AnnotateOnly(Annotate):
    """Annotates without the second answer, which a separate pass gives."""

    async def _second_pass(self, row: Any, image: EncodedImage, first: Any, pair: Any) -> Any:
        if isinstance(first, Reply) and not isinstance(pair, str):
            return row.annotated(pair.question, pair.answer, first, [replace(first, text=pair.answer)])
        return await super()._second_pass(row, image, first, pair)


@dataclass(frozen=True)
class Variant:
    """The settings that sweeps change; None is the project's default."""

    num_renderers: int | None = None
    num_questions: int = 1
    max_images_in_flight: int | None = None


def configuration(work: Work, run_dir: Path, row: str, variant: Variant) -> RunConfig:
    """The configuration of a row's run."""
    engine: dict[str, Any] = {
        "dtype": work.dtype,
        "max_num_seqs": work.max_num_seqs,
        "max_model_len": work.max_model_len,
        "num_renderers": variant.num_renderers,
    }
    if row == "e":
        # vLLM's default, so that it does not process the image again for the second prompt.
        engine["engine_args"] = {"mm_processor_cache_gb": 4}
    model = {
        "engine": engine,
        "min_pixels": 56 * 56,
        "max_pixels": work.image_size**2,
        "max_images_in_flight": variant.max_images_in_flight,
    }
    # With greedy decoding all questions about one image would be equal.
    temperature = 0.7 if variant.num_questions > 1 else 0
    sampling = {"temperature": temperature, "max_new_tokens": work.first_tokens}
    return RunConfig.model_validate(
        {
            "run_dir": str(run_dir),
            "task": TASK.name,
            "source": {"path": str(run_dir.parent / "images"), "shard_size": work.shard_size, "skip_duplicates": False},
            "teacher": {**model, "model": work.teacher},
            "students": [{**model, "model": work.student or work.teacher}],
            "annotate": {"sampling": sampling, "num_questions": variant.num_questions},
            "answer": {"max_new_tokens": work.second_tokens},
        }
    )


Configure = Callable[[Work, Path, str, Variant], RunConfig]
"""Makes the configuration of a run from the work, its folder, the row and the variant."""


def measure(work: Work, row: str, variant: Variant, configure: Configure = configuration) -> Timings:
    """Run the passes of a row, and time them."""
    with tempfile.TemporaryDirectory(prefix="mpa_ray-throughput-") as scratch:
        _copy_images(work, Path(scratch, "images"))
        config = configure(work, Path(scratch, "run"), row, variant)
        index(RunContext.open(config))
        run = Run.open(config.run_dir, config.object_store)
        start_ray()
        passes = _Passes(work, config, run)
        timings = Timings([], [])
        wrap = partial(_wrapped, row == "e", work)
        settings = {"task": TASK, "config": config.annotate, "answer": config.answer}
        stage: Any = AnnotateOnly if row == "d" else Annotate
        timings.teacher_images_per_s = passes.rates("annotate", config.teacher, partial(_make, stage, wrap, settings))
        again = {
            "task": TASK,
            "answer": config.answer,
            "worth_asking": WorthAsking(MATCHERS["exact"], where_teacher_disagrees=True),
        }
        make_again = partial(_make, Identify, wrap, again)
        if row == "d":
            second = passes.rates("again", config.teacher, make_again)
            timings.teacher_images_per_s = [
                1 / (1 / a + 1 / b) for a, b in zip(timings.teacher_images_per_s, second, strict=True)
            ]
        else:
            rows = list(run.annotations.rows(run.manifest().shards))
            timings.num_uncached_image_tokens = sum(r.num_uncached_image_tokens for r in rows)
            first_s, second_s = sum(r.first_pass_s for r in rows), sum(r.second_pass_s for r in rows)
            timings.second_pass_share = second_s / (first_s + second_s)
            timings.pairs_per_image = sum(r.state == "kept" for r in rows) / len({r.image_id for r in rows})
        if work.student is not None:
            timings.student_images_per_s = passes.rates("student", config.students[0], make_again)
    return timings


class _Passes:
    """Passes over one run's shards; the first shard warms the engine up and is not counted."""

    def __init__(self, work: Work, config: RunConfig, run: Run) -> None:
        self._work, self._config, self._run = work, config, run

    def rates(self, name: str, model: ModelConfig, make_stage: Any) -> list[float]:
        shards = self._run.manifest().shards
        source, target = self._run.annotations, self._run.verdicts(name)
        if name == "annotate":
            source, target = self._run.corpus, self._run.annotations  # type: ignore[assignment]
        work: Pass[Any] = Pass(
            key=PhaseKey("annotate" if name == "annotate" else "identify", name),
            models=(name,),
            source=source,
            target=target,
            model=model,
            branch="teacher",
            make_stage=make_stage,
            reader=Reader(self._config.object_store),
            reading=self._config.reading,
            limits=self._config.limits,
        )
        done = [(time.perf_counter(), shard.num_images) for shard in stream_pass(work, shards)]
        return rates(done[0][0], done[1:], self._work.num_images)


def _make(stage: type, wrap: Any, settings: dict[str, Any], model: VisionLanguageModel) -> Stage[Any, Any]:
    instance: Stage[Any, Any] = stage(wrap(model), **settings)
    return instance


def _wrapped(is_raw: bool, work: Work, model: VisionLanguageModel) -> VisionLanguageModel:
    engine = Raw(model, 56 * 56, work.image_size**2) if is_raw else model
    return Readable(engine) if work.random_weights else engine


def _copy_images(work: Work, folder: Path) -> None:
    """Copy the images for each repetition, with the same pixels and another hash."""
    folder.mkdir()
    for repetition in range(work.repetitions + 1):
        for file in work.files():
            # Bytes after the end of a JPEG do not change its pixels.
            (folder / f"{repetition}-{file.name}").write_bytes(file.read_bytes() + f"{repetition}".encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("row", choices=["d", "e", "f"])
    parser.add_argument("work")
    parser.add_argument("out")
    parser.add_argument("--renderers", type=int)
    parser.add_argument("--questions", type=int, default=1)
    parser.add_argument("--in-flight", type=int)
    parser.add_argument("--no-student", action="store_true")
    options = parser.parse_args()
    variant = Variant(options.renderers, options.questions, options.in_flight)
    work = Work.load(options.work)
    measure(replace(work, student=None) if options.no_student else work, options.row, variant).save(options.out)


if __name__ == "__main__":
    # By the module's own name, so that Ray's workers find the stages.
    from benchmarks.throughput.ours import main as run

    run()
