"""Leveling on a GPU against a plain `transformers.Trainer` with random batches: samples and tokens per second, MFU.

    python -m benchmarks.gpu.leveling --out FILE [--shape 2b] [--rows plain-lora ours-lora ...] [--dry-run]

Needs Ray, not vLLM. Both train the same model with random weights on the same samples of mixed lengths, with the same
collator and the same adapters. Each row runs in a separate process, and its rates leave out the first 5 steps.
`ours-lora` is all of leveling: Ray Data, Ray Train, the export and its check. `ours-full` is leveling's trainer with
Ray Data, without Ray Train, checkpoints and export, since writing 30 GB of optimiser state would measure the disk. A
row that runs out of memory is recorded as failed; `--micro-batch 4` halves the samples of a forward pass.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

from benchmarks.gpu.measuring import Options, Record, parse_options, timed
from benchmarks.gpu.shapes import SHAPES, PaintedImage, build_checkpoint, paint_images
from mpa_ray.models.chat_template import load_processor, render
from mpa_ray.records import ParitySample
from mpa_ray.tasks.library import TASKS

ROWS = ("plain-lora", "ours-lora", "plain-full", "ours-full")
TASK = TASKS["demo_world"]
DRY_RUN = {
    "shape": "tiny",
    "sides": [112, 168, 224],
    "num_samples": 80,
    "batch_size": 8,
    "micro_batch": 4,
    "num_loaders": 1,
    "row_timeout_s": 400,
}


@dataclass(frozen=True)
class Sizes(Options):
    rows: list[str]
    shape: str
    num_samples: int
    sides: list[int]
    """Of the square images, in pixels."""
    batch_size: int
    """Samples of an optimiser step."""
    micro_batch: int
    """Samples of a forward pass; half as many in full fine-tuning, whose weights, gradients and optimiser state take
    35 GB of memory."""
    num_loaders: int
    """Worker processes of the plain Trainer's data loader."""
    attention: str
    row_timeout_s: int


@dataclass(frozen=True)
class Work:
    """What a row needs: the folder with the model and the samples, and the sizes."""

    folder: str
    num_loaders: int
    batch_size: int
    micro_batch: int
    attention: str
    pixel_limits: tuple[int, int]

    @staticmethod
    def of(folder: Path, sizes: Sizes) -> Work:
        limits = (min(sizes.sides) ** 2, max(sizes.sides) ** 2)
        return Work(str(folder), sizes.num_loaders, sizes.batch_size, sizes.micro_batch, sizes.attention, limits)

    @property
    def model(self) -> str:
        return f"{self.folder}/model"

    def micro_batch_of(self, row: str) -> int:
        return self.micro_batch if row.endswith("lora") else max(1, self.micro_batch // 2)

    def samples(self) -> list[ParitySample]:
        return [ParitySample(**fields) for fields in json.loads(Path(self.folder, "samples.json").read_text())]

    def save(self, samples: Sequence[ParitySample]) -> None:
        Path(self.folder, "samples.json").write_text(json.dumps([asdict(sample) for sample in samples]))
        Path(self.folder, "work.json").write_text(json.dumps(asdict(self)))

    @staticmethod
    def load(folder: str) -> Work:
        fields = json.loads(Path(folder, "work.json").read_text())
        return Work(**{**fields, "pixel_limits": tuple(fields["pixel_limits"])})

    def result(self, row: str) -> Path:
        """The file for a row's results."""
        return Path(self.folder, f"{row}.json")


def make_samples(images: Sequence[PaintedImage], model: str) -> list[ParitySample]:
    """A sample for each image, with the prompt length that identification would have measured."""
    from PIL import Image

    processor = load_processor(model)
    num_image_tokens: dict[int, int] = {}
    samples = []
    for image in images:
        prompt = render(processor, TASK.answer_prompt(image.question))
        num_text_tokens = len(processor.tokenizer(prompt)["input_ids"])
        if image.side_px not in num_image_tokens:
            with Image.open(image.path) as pixels:
                (tokens,) = processor(text=[prompt], images=[[pixels.convert("RGB")]])["input_ids"]
            num_image_tokens[image.side_px] = len(tokens) - num_text_tokens
        name = Path(image.path).name
        sample = ParitySample(
            annotation_id=f"{name}#0",
            image_id=name,
            uri=image.path,
            question=image.question,
            answer=image.answer,
            student_answer="?",
            num_prompt_tokens=num_text_tokens + num_image_tokens[image.side_px],
        )
        samples.append(sample)
    return samples


def prepare(sizes: Sizes, folder: Path) -> Work:
    """Paint the images, write the checkpoint and measure the prompts."""
    with timed("images"):
        images = paint_images(folder / "images", sizes.sides, sizes.num_samples)
    work = Work.of(folder, sizes)
    with timed("checkpoint"):
        build_checkpoint(sizes.shape, Path(work.model), max(sizes.sides))
    with timed("prompt lengths"):
        work.save(make_samples(images, work.model))
    return work


def measure(row: str, work: Work, timeout_s: int, record: Record) -> None:
    """Run a row in a separate process, and record its results or the end of its output."""
    command = [sys.executable, "-m", "benchmarks.gpu.leveling_rows", row, work.folder]
    log = Path(work.folder, f"{row}.log")
    with log.open("w") as output:
        try:
            done = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, timeout=timeout_s, check=False)
            problem = None if done.returncode == 0 else f"exit code {done.returncode}"
        except subprocess.TimeoutExpired:
            problem = f"not finished after {timeout_s} s"
    if problem is None:
        record.add(row, json.loads(work.result(row).read_text()))
    else:
        record.fail(row, f"{problem}: {log.read_text()[-2900:]}")


def ratio(record: Record, method: str) -> float | None:
    """Our samples per second over the plain Trainer's; None if one of the two was not measured."""
    ours, plain = (record.row(f"{trainer}-{method}").get("samples_per_s") for trainer in ("ours", "plain"))
    return round(ours / plain, 3) if isinstance(ours, float) and isinstance(plain, float) else None


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.leveling", description=__doc__)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--shape", choices=list(SHAPES), default="2b")
    parser.add_argument("--num-samples", type=int, default=640)
    sides_help = "of the images, in pixels"
    parser.add_argument("--sides", type=int, nargs="+", default=[224, 336, 448, 672, 896], help=sides_help)
    parser.add_argument("--batch-size", type=int, default=32, help="samples of an optimiser step")
    parser.add_argument("--micro-batch", type=int, default=8, help="samples of a forward pass; half in the full rows")
    parser.add_argument("--num-loaders", type=int, default=8, help="processes of the plain Trainer's data loader")
    parser.add_argument("--attention", default="auto", help="level.attention, in our rows")
    parser.add_argument("--row-timeout-s", type=int, default=170)
    sizes = Sizes(**parse_options(parser, DRY_RUN))
    record = Record(sizes)
    with tempfile.TemporaryDirectory() as folder:
        work = prepare(sizes, Path(folder))
        lengths = [sample.num_prompt_tokens for sample in work.samples()]
        record.summarise(prompt_tokens={"min": min(lengths), "mean": round(fmean(lengths), 1), "max": max(lengths)})
        for row in sizes.rows:
            with timed(row):
                measure(row, work, sizes.row_timeout_s, record)
    record.summarise(**{f"ours_over_plain_{method}": ratio(record, method) for method in ("lora", "full")})
    return record.exit_code


if __name__ == "__main__":
    sys.exit(main())
