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

from mpa_ray.config import LevelConfig
from mpa_ray.errors import RunError
from mpa_ray.imaging.prepare import ImageScaling
from mpa_ray.leveling import export
from mpa_ray.leveling.batching import TrainingRow
from mpa_ray.leveling.export import Answer, CheckQuestions, load_trained_weights
from mpa_ray.leveling.parallel import check_parallel
from mpa_ray.leveling.worker import load_model
from mpa_ray.models.chat_template import load_processor
from mpa_ray.models.generation_settings import GenerationSettings
from mpa_ray.records import ParitySample
from mpa_ray.run.export_check import ExportCheck, NearTie
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


BAD_SETTINGS = {
    **{"temperature": 0.9, "top_k": 1, "top_p": 0.6, "min_p": 0.1, "pad_token_id": -1},
    **{"early_stopping": True, "length_penalty": 0.8, "num_return_sequences": 3, "repetition_penalty": 1.05},
}
"""Settings of a base that transformers does not load, and that it would not save either, except for the penalty."""


def test_a_base_with_bad_generation_settings_is_loaded_and_exported(tmp_path: Path) -> None:
    start = build("qwen2_vl", tmp_path / "start")
    (start / "generation_config.json").write_text(json.dumps(BAD_SETTINGS))
    with pytest.raises(ValueError, match="num_return_sequences"):
        AutoModelForImageTextToText.from_pretrained(start)
    model, processor = load_model(str(start), LevelConfig(), on_gpu=False), load_processor(str(start))
    questions = CheckQuestions([], [], TASKS["demo_world"], ImageScaling.of(processor, *PIXELS), 8)
    inherited = GenerationSettings.of_checkpoint(str(start), processor.tokenizer.pad_token_id)
    run = Run(LocalStorage(str(tmp_path)))
    export.export(model, processor, "owner/name", "a card", questions, run, "student", inherited=inherited)
    saved = json.loads((tmp_path / "student/merged/generation_config.json").read_text())
    assert saved["pad_token_id"] == processor.tokenizer.pad_token_id
    assert saved["repetition_penalty"] == 1.05
    assert BAD_SETTINGS.items() & saved.items() == {("repetition_penalty", 1.05)}
    repairs = ExportCheck.read(run, "student").repairs
    assert {line.split()[1] for line in repairs} == BAD_SETTINGS.keys() - {"repetition_penalty"}
    assert all(line.startswith("generation_config.json: ") for line in repairs)


def test_an_export_repairs_settings_in_memory_and_has_both_files_of_the_processor(tmp_path: Path) -> None:
    """A checkpoint without a file of generation settings may have them in its config.json."""
    exported(tmp_path, temperature=0.7, num_return_sequences=2)
    number, temperature = ExportCheck.read(Run(LocalStorage(str(tmp_path))), "student").repairs
    assert number.startswith("generation_config.json: num_return_sequences 2 is left out: ")
    assert temperature.startswith("generation_config.json: temperature 0.7 is left out: ")
    merged = tmp_path / "student/merged"
    settings = json.loads((merged / "preprocessor_config.json").read_text())
    assert settings["size"] == {"shortest_edge": PIXELS[0], "longest_edge": PIXELS[1]}
    assert settings["image_processor_type"].startswith("Qwen2VLImageProcessor")
    nested = json.loads((merged / "processor_config.json").read_text())["image_processor"]
    assert {name: settings[name] for name in nested} == nested


class Changed(CheckQuestions):
    """Questions to which the second model gives answers that end in another way."""

    has_near_tie = False
    num_models = 0

    def answers(self, model: Any, processor: Any) -> list[Answer]:
        self.num_models += 1
        texts = [answer.text for answer in super().answers(model, processor)]
        begins = [len(text) if self.has_near_tie else 0 for text in texts]
        return [
            Answer(f"{text}{self.num_models}", (NearTie(begin, begin + 1),))
            for text, begin in zip(texts, begins, strict=True)
        ]


def test_only_clear_answers_of_a_reloaded_export_have_to_be_equal(tmp_path: Path) -> None:
    start = build("qwen2_vl", tmp_path / "start")
    processor, rows, run = load_processor(str(start)), rows_in(tmp_path)[:1], Run(LocalStorage(str(tmp_path)))
    scaling = ImageScaling.of(processor, *PIXELS)
    questions = Changed(rows, [Path(row.uri).read_bytes() for row in rows], TASKS["demo_world"], scaling, 2)
    model = AutoModelForImageTextToText.from_pretrained(start)
    # There is a near-tie at the beginning of each answer, but the answers differ at their ends.
    with pytest.raises(RunError, match="answers differently from the model in memory: "):
        export.export(model, processor, "owner/name", "a card", questions, run, "student")
    questions.has_near_tie = True
    model = AutoModelForImageTextToText.from_pretrained(start)
    export.export(model, processor, "owner/name", "a card", questions, run, "student")
    (answer,) = ExportCheck.read(run, "student").answers
    assert answer.near_ties == (NearTie(len(answer.answer) - 1, len(answer.answer)),)


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
    assert [answer.text for answer in questions.answers(student, processor)] == answers_in(tmp_path / "plain")
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
