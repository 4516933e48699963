"""Rows `d`, `e` and `f`: this project's own passes, through Ray Data and with everything written and committed.

`d` has the teacher annotate all images in one pass and answer in another. `e` is the shared visit on raw prompts. `f`
is the shared visit as it is shipped, each image rendered once for all prompts about it.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.throughput.work import QUESTION, TASK, Timings, Work, rates
from mpa_ray.config import ModelConfig, RunConfig
from mpa_ray.corpus.read import Reader
from mpa_ray.engine.protocol import EncodedImage, Reply, Request, VisionLanguageModel
from mpa_ray.imaging.decode import ImageProblem, prepare_in_thread
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
    """A model with random weights whose replies read as if they were pairs; all its work is done."""

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
    """An engine that is given the picture itself, as with a vLLM that has no renderer to call."""

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
    """Leaves the second answer to a pass of its own."""

    async def _second_pass(self, row: Any, image: EncodedImage, first: Any, pair: Any) -> Any:
        if isinstance(first, Reply) and not isinstance(pair, str):
            return row.annotated(pair.question, pair.answer, first, [replace(first, text=pair.answer)])
        return await super()._second_pass(row, image, first, pair)


@dataclass(frozen=True)
class Variant:
    """What the sweeps change of a row; None is as shipped."""

    num_renderers: int | None = None
    num_questions: int = 1
    max_images_in_flight: int | None = None


def configuration(work: Work, run_dir: Path, row: str, variant: Variant) -> RunConfig:
    engine: dict[str, Any] = {
        "dtype": work.dtype,
        "max_num_seqs": work.max_num_seqs,
        "max_model_len": work.max_model_len,
        "num_renderers": variant.num_renderers,
    }
    if row == "e":
        # vLLM's default, so that the second prompt finds the picture processed.
        engine["engine_args"] = {"mm_processor_cache_gb": 4}
    model = {
        "engine": engine,
        "min_pixels": 56 * 56,
        "max_pixels": work.image_size**2,
        "max_images_in_flight": variant.max_images_in_flight,
    }
    # Greedy questions on one image would all be the same.
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


def measure(work: Work, row: str, variant: Variant) -> Timings:
    with tempfile.TemporaryDirectory(prefix="mpa_ray-throughput-") as scratch:
        _lay_out(work, Path(scratch, "images"))
        config = configuration(work, Path(scratch, "run"), row, variant)
        index(RunContext.open(config))
        run = Run.open(config.run_dir, config.object_store)
        start_ray()
        passes = _Passes(work, config, run)
        found = Timings([], [])
        wrap = partial(_wrapped, row == "e", work)
        settings = {"task": TASK, "config": config.annotate, "answer": config.answer}
        stage: Any = AnnotateOnly if row == "d" else Annotate
        found.teacher_images_per_s = passes.rates("annotate", config.teacher, partial(_make, stage, wrap, settings))
        again = {
            "task": TASK,
            "answer": config.answer,
            "worth_asking": WorthAsking(MATCHERS["exact"], where_teacher_disagrees=True),
        }
        make_again = partial(_make, Identify, wrap, again)
        if row == "d":
            second = passes.rates("again", config.teacher, make_again)
            found.teacher_images_per_s = [
                1 / (1 / a + 1 / b) for a, b in zip(found.teacher_images_per_s, second, strict=True)
            ]
        else:
            rows = list(run.annotations.rows(run.manifest().shards))
            found.num_uncached_image_tokens = sum(r.num_uncached_image_tokens for r in rows)
            first_s, second_s = sum(r.first_pass_s for r in rows), sum(r.second_pass_s for r in rows)
            found.second_pass_share = second_s / (first_s + second_s)
            found.pairs_per_image = sum(r.state == "kept" for r in rows) / len({r.image_id for r in rows})
        if work.student is not None:
            found.student_images_per_s = passes.rates("student", config.students[0], make_again)
    return found


class _Passes:
    """Passes over one run's shards; the first shard warms the engine up and does not count."""

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
            make_stage=make_stage,
            reader=Reader(self._config.object_store),
            reading=self._config.reading,
            limits=self._config.limits,
        )
        done = [(time.perf_counter(), shard.num_images) for shard in stream_pass(work, shards)]
        return rates(done[0][0], done[1:], self._work.num_images)


def _make(stage: type, wrap: Any, settings: dict[str, Any], model: VisionLanguageModel) -> Stage[Any, Any]:
    made: Stage[Any, Any] = stage(wrap(model), **settings)
    return made


def _wrapped(is_raw: bool, work: Work, model: VisionLanguageModel) -> VisionLanguageModel:
    seeing = Raw(model, 56 * 56, work.image_size**2) if is_raw else model
    return Readable(seeing) if work.random_weights else seeing


def _lay_out(work: Work, folder: Path) -> None:
    """Each repetition's images as files of their own, the same but for a name in the metadata that changes the hash."""
    folder.mkdir()
    for repetition in range(work.repetitions + 1):
        for file in work.files():
            # Bytes behind a JPEG's end are not pixels.
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
    # Under its own name, so that Ray's workers find the stages.
    from benchmarks.throughput.ours import main as run

    run()
