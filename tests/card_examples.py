"""An exported student with its model card, and the examples of the card as code."""

from __future__ import annotations

import random
import re
from pathlib import Path

from pydantic import TypeAdapter
from transformers import AutoModelForImageTextToText

from mpa_ray.config import RunConfig, resolve_path
from mpa_ray.demo.world import WorldSpec, paint, sample_question, sample_scene
from mpa_ray.imaging.prepare import ImageScaling
from mpa_ray.leveling.batching import TrainingRow
from mpa_ray.leveling.export import CheckQuestions, export
from mpa_ray.models.chat_template import load_processor
from mpa_ray.records import EpochCounts, ParitySample
from mpa_ray.report.card import model_card
from mpa_ray.report.card_usage import usage
from mpa_ray.run.export_check import ExportCheck
from mpa_ray.run.run import Run
from mpa_ray.storage.local import LocalStorage
from mpa_ray.tasks.library import TASKS
from tests.conftest import scripted_tree

TASK = TASKS["demo_world"]
SIZES = [(320, 240), (240, 320), (129, 97), (112, 112), (48, 40), (400, 90)]
"""Sizes of images, above the student's limits, within them and below them."""
_MODEL = "bundled:demo/models/student"
_PIXELS = (3136, 12544)
_QUESTION = {"number": 1.0, "chart": 1.0, "count": 0.2}


def config_in(folder: Path) -> RunConfig:
    engine = {"kind": "vllm", "dtype": "float32", "max_model_len": 512}
    student = {"name": "small", "model": _MODEL, "engine": engine, "min_pixels": _PIXELS[0], "max_pixels": _PIXELS[1]}
    tree = {**scripted_tree(folder / "images", folder / "run"), "students": [student]}
    return RunConfig.model_validate({**tree, "answer": {"max_new_tokens": 8}})


def card(folder: Path, processor_scales: bool = True) -> str:
    config = config_in(folder)
    use = usage(config.students[0], TASK, config.answer.max_new_tokens, processor_scales)
    return model_card(config, config.students[0], "parity", EpochCounts(1, 0, 0, 0, 0, 1), {}, use)


def exported_student(folder: Path) -> ExportCheck:
    """Export the bundled student into `student/merged`. The answers are those that the export is tested with."""
    rng, rows = random.Random(5), []
    while len(rows) < len(SIZES):
        scene = sample_scene(WorldSpec(), rng)
        question = sample_question(scene, rng, _QUESTION)
        if question is not None:
            path = folder / f"{len(rows)}.png"
            paint(scene).resize(SIZES[len(rows) % len(SIZES)]).save(path)
            sample = ParitySample(f"{path.name}#0", path.name, str(path), question.question, question.answer, "?")
            rows.append(TrainingRow(sample, 1))
    contents = [Path(row.uri).read_bytes() for row in rows]
    model = AutoModelForImageTextToText.from_pretrained(resolve_path(_MODEL), dtype="float32")
    processor = load_processor(resolve_path(_MODEL))
    questions = CheckQuestions(rows, contents, TASK, ImageScaling.of(processor, *_PIXELS), max_new_tokens=8)
    export(model, processor, "owner/name", card(folder), questions, Run(LocalStorage(str(folder))), "student")
    return TypeAdapter(ExportCheck).validate_json((folder / "student/check.json").read_bytes())


def blocks(text: str) -> list[str]:
    """The Python blocks of a document: common code, the example for transformers, and the one for vLLM."""
    return re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
