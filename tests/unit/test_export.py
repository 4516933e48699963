"""What an export refuses, with and without `python -O`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForImageTextToText

from mpa_ray.errors import RunError
from mpa_ray.imaging.prepare import ImageScaling
from mpa_ray.leveling import export
from mpa_ray.leveling.batching import TrainingRow
from mpa_ray.leveling.export import CheckQuestions, load_trained_weights
from mpa_ray.leveling.parallel import check_parallel
from mpa_ray.models.chat_template import load_processor
from mpa_ray.records import ParitySample
from mpa_ray.run.run import Run
from mpa_ray.storage.local import LocalStorage
from mpa_ray.tasks.library import TASKS
from tests.families import build, file_of, picture


def test_weights_have_to_be_those_of_the_model() -> None:
    model = nn.Linear(2, 1)
    weights = {"weight": torch.ones(1, 2), "bias": torch.ones(1)}
    assert torch.equal(load_trained_weights(model, weights).weight, weights["weight"])
    with pytest.raises(RunError, match="training gave no weights for bias"):
        load_trained_weights(model, {"weight": weights["weight"]})
    with pytest.raises(RunError, match="it does not have the trained weights other"):
        load_trained_weights(model, {**weights, "other": torch.ones(1)})


def test_a_model_has_to_be_spread_over_the_workers_as_configured() -> None:
    model = nn.Linear(2, 1)
    check_parallel(model, "ddp", 1)
    with pytest.raises(RunError, match="2 workers train a Linear without DDP"):
        check_parallel(model, "ddp", 2)
    with pytest.raises(RunError, match="2 parameters are not sharded"):
        check_parallel(model, "fsdp", 2)


def test_checks_of_an_export_hold_under_python_o(monkeypatch: pytest.MonkeyPatch) -> None:
    optimized = ModuleType("optimized_export")
    monkeypatch.setitem(sys.modules, optimized.__name__, optimized)
    source = Path(export.__file__).read_text()
    # What `python -O` does: the code has no assert statements.
    exec(compile(source + "\nassert False\n", export.__file__, "exec", optimize=1), optimized.__dict__)
    with pytest.raises(RunError, match="training gave no weights for bias, weight"):
        optimized.load_trained_weights(nn.Linear(2, 1), {})


PIXELS = (4 * 784, 16 * 784)


def rows_in(folder: Path) -> list[TrainingRow]:
    """Questions about images above the pixel limits."""
    rows = []
    for number, size in enumerate([(320, 240), (240, 320), (400, 90)]):
        path = folder / f"{number}.ppm"
        path.write_bytes(file_of(size))
        sample = ParitySample(f"{number}#0", path.name, str(path), f"What is in place {number}?", "a", "b")
        rows.append(TrainingRow(sample, 1))
    return rows


def exported(folder: Path, **settings: Any) -> tuple[Any, CheckQuestions]:
    """Export a tiny Qwen2-VL with these generation settings; returns its processor and the questions."""
    start = build("qwen2_vl", folder / "start")
    model, processor = AutoModelForImageTextToText.from_pretrained(start), load_processor(str(start))
    for name, value in settings.items():
        setattr(model.generation_config, name, value)
    rows = rows_in(folder)
    contents = [Path(row.uri).read_bytes() for row in rows]
    questions = CheckQuestions(rows, contents, TASKS["demo_world"], ImageScaling.of(processor, *PIXELS), 8)
    export.export(model, processor, "owner/name", "a card", questions, Run(LocalStorage(str(folder))), "student")
    return processor, questions


def answers_in(folder: Path) -> list[str]:
    return [row["answer"] for row in json.loads((folder / "student/check.json").read_text())["answers"]]


def test_an_exported_processor_has_the_pixel_limits_of_the_student(tmp_path: Path) -> None:
    processor, _ = exported(tmp_path)
    alone = load_processor(str(tmp_path / "student/merged"))
    original = {"shortest_edge": 4 * 784, "longest_edge": 64 * 784}
    assert dict(alone.image_processor.size) == {"shortest_edge": PIXELS[0], "longest_edge": PIXELS[1]}
    assert dict(processor.image_processor.size) == original
    assert alone.image_processor(images=[picture((320, 240))])["image_grid_thw"].tolist() == [[1, 6, 8]]


def test_the_answers_of_an_export_do_not_depend_on_its_generation_settings(tmp_path: Path) -> None:
    """An engine does not use these settings, and the answers are compared with those of an engine."""
    (tmp_path / "plain").mkdir()
    (tmp_path / "penalised").mkdir()
    exported(tmp_path / "plain")
    settings = {"repetition_penalty": 9.0, "no_repeat_ngram_size": 1, "min_new_tokens": 8, "do_sample": True}
    processor, questions = exported(tmp_path / "penalised", **settings)
    assert answers_in(tmp_path / "penalised") == answers_in(tmp_path / "plain")
    # The settings would change the answers, and users keep them.
    student = AutoModelForImageTextToText.from_pretrained(tmp_path / "penalised/student/merged")
    assert student.generation_config.repetition_penalty == 9.0
    assert questions.answers(student, processor) == answers_in(tmp_path / "plain")
    assert student.generation_config.repetition_penalty == 9.0


def test_a_processor_with_the_limits_of_the_student_keeps_the_sizes_of_prepared_images(tmp_path: Path) -> None:
    """The limits are so narrow that the exported processor alone would scale a prepared image again."""
    start = build("qwen2_vl", tmp_path / "start")
    model, processor = AutoModelForImageTextToText.from_pretrained(start), load_processor(str(start))
    rows = rows_in(tmp_path)
    contents = [Path(row.uri).read_bytes() for row in rows]
    scaling = ImageScaling.of(processor, 12544, 12544)
    questions = CheckQuestions(rows, contents, TASKS["demo_world"], scaling, 8)
    expected = questions.answers(model, processor)
    assert scaling.grid is not None
    scaling.grid.limit(processor)
    assert questions.answers(model, processor) == expected
