"""The project's own passes on a GPU, with Ray, Ray Data and commits: images per second of the teacher.

    python -m benchmarks.gpu.whole_flow --out FILE [--rows visit two-passes] [--shape 7b] [--dry-run]

`visit` is annotation as shipped; `two-passes` annotates all images in one pass and answers in another. They are rows f
and d of `benchmarks.throughput`. Images, prompts and reply lengths are those of `engine_ladder`, so that the difference
between its rows and these is the cost of everything around the engine. Every pass starts an engine, and its first
shard, which warms the engine up, is not counted.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.gpu.measuring import GpuMonitor, Options, Record, parse_options, timed
from benchmarks.gpu.serving import Serving, disable_flashinfer_sampler
from benchmarks.gpu.shapes import SHAPES, build_checkpoint, paint_images
from benchmarks.throughput import ours
from benchmarks.throughput.work import TASK, Work
from mpa_ray.config import RunConfig

ROWS = {"visit": "f", "two-passes": "d"}
"""Each row's name in `benchmarks.throughput`."""
DRY_RUN = {
    "shape": "tiny",
    "side": 112,
    "num_images": 32,
    "max_num_seqs": 4,
    "max_model_len": 512,
    "num_renderers": 0,
    "shard_size": 16,
}


@dataclass(frozen=True)
class Sizes(Options):
    rows: list[str]
    shape: str
    side: int
    """Width and height of the square images, in pixels."""
    num_images: int
    """The images of each repetition."""
    num_repetitions: int
    """The repetitions that count. One more is run, to warm the engine up."""
    max_num_seqs: int
    max_model_len: int
    num_renderers: int
    shard_size: int
    first_tokens: int
    second_tokens: int
    engine_args: dict[str, Any]

    def serving(self) -> Serving:
        return Serving(
            side_px=self.side,
            max_num_seqs=self.max_num_seqs,
            max_model_len=self.max_model_len,
            num_renderers=self.num_renderers,
            on_gpu=not self.dry_run,
            engine_args=self.engine_args,
        )


def configuration(serving: Serving, work: Work, run_dir: Path, row: str, variant: ours.Variant) -> RunConfig:  # noqa: ARG001
    """The configuration of a run whose teacher and student are the same model with random weights."""
    model = serving.model_settings(work.teacher)
    return RunConfig.model_validate(
        {
            "run_dir": str(run_dir),
            "task": TASK.name,
            "source": {"path": str(run_dir.parent / "images"), "shard_size": work.shard_size, "skip_duplicates": False},
            "teacher": model,
            "students": [model],
            "annotate": {"sampling": {"temperature": 0, "max_new_tokens": work.first_tokens}},
            "answer": {"max_new_tokens": work.second_tokens},
        }
    )


def prepare(sizes: Sizes, scratch: Path) -> Work:
    """Paint the images and write the checkpoint."""
    with timed("images"):
        paint_images(scratch / "images", [sizes.side], sizes.num_images)
    with timed("checkpoint"):
        build_checkpoint(sizes.shape, scratch / "model", sizes.side, with_weights=False)
    return Work(
        name="gpu",
        teacher=str(scratch / "model"),
        student=None,
        images=str(scratch / "images"),
        num_images=sizes.num_images,
        repetitions=sizes.num_repetitions,
        image_size=sizes.side,
        first_tokens=sizes.first_tokens,
        second_tokens=sizes.second_tokens,
        random_weights=True,
        dtype=sizes.serving().dtype,
        max_num_seqs=sizes.max_num_seqs,
        max_model_len=sizes.max_model_len,
        shard_size=sizes.shard_size,
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.whole_flow", description=__doc__)
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=["visit"])
    parser.add_argument("--shape", choices=list(SHAPES), default="7b")
    parser.add_argument("--side", type=int, default=896, help="of the images, in pixels")
    parser.add_argument("--num-images", type=int, default=320, help="in each repetition")
    parser.add_argument("--num-repetitions", type=int, default=1, help="one more is run and not counted")
    parser.add_argument("--max-num-seqs", type=int, default=64)
    parser.add_argument("--max-model-len", type=int, default=4096)
    parser.add_argument("--num-renderers", type=int, default=12)
    parser.add_argument("--shard-size", type=int, default=64)
    parser.add_argument("--first-tokens", type=int, default=32, help="length of an annotation")
    parser.add_argument("--second-tokens", type=int, default=8, help="length of an answer")
    parser.add_argument("--engine-args", type=json.loads, default={}, metavar="JSON", help="more settings for vLLM")
    sizes = Sizes(**parse_options(parser, DRY_RUN))
    disable_flashinfer_sampler()
    record = Record(sizes)
    variant = ours.Variant(num_renderers=sizes.num_renderers)
    configure = partial(configuration, sizes.serving())
    with tempfile.TemporaryDirectory() as scratch, GpuMonitor() as monitor:
        work = prepare(sizes, Path(scratch))
        for name in sizes.rows:
            started_s = time.monotonic()
            try:
                with timed(name):
                    timings = ours.measure(work, ROWS[name], variant, configure)
            except Exception as error:  # noqa: BLE001
                # An engine that cannot start may raise anything, and the next row is still measured.
                record.fail(name, f"{type(error).__name__}: {error}")
                continue
            row = asdict(timings) | {"wall_s": round(time.monotonic() - started_s, 1)}
            record.add(name, row | monitor.between(started_s, time.monotonic()))
    return record.exit_code


if __name__ == "__main__":
    sys.exit(main())
