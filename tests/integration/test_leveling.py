"""Leveling: the batch that a model gets, what is trained, and whole training runs on one worker and on two."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForImageTextToText

from mpa_ray.config import FullConfig, HoldoutConfig, LevelConfig, LoraConfig, RunConfig, StudentConfig, resolve_path
from mpa_ray.demo.world import WorldSpec, paint, sample_question, sample_scene
from mpa_ray.errors import RunError
from mpa_ray.leveling.arms import SampleSources
from mpa_ray.leveling.batching import TrainingRow
from mpa_ray.leveling.collator import AnswerCollator
from mpa_ray.leveling.driver import fine_tune
from mpa_ray.leveling.epoch_plan import plan_epoch
from mpa_ray.leveling.loss import IGNORED_LABEL, answer_loss, weight_of
from mpa_ray.leveling.trainable import prepare_for_training
from mpa_ray.models.chat_template import load_processor, render
from mpa_ray.models.components import component_of
from mpa_ray.records import ParitySample, Verdict
from mpa_ray.run.export_check import ExportCheck
from mpa_ray.run.phase_record import PhaseKey
from mpa_ray.run.run import Run
from mpa_ray.run.training_state import TrainingState
from mpa_ray.tasks.library import TASKS
from tests.conftest import scripted_tree

MODEL = resolve_path("bundled:demo/models/student")
TASK = TASKS["demo_world"]
FOLDER = "students/s/parity"


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[ParitySample]:
    folder, rng = tmp_path_factory.mktemp("samples"), random.Random(3)
    rows: list[ParitySample] = []
    while len(rows) < 40:
        scene = sample_scene(WorldSpec(), rng)
        question = sample_question(scene, rng, {"number": 1.0, "chart": 1.0, "count": 0.2})
        if question is not None:
            path = folder / f"{len(rows)}.png"
            paint(scene).save(path)
            rows.append(ParitySample(f"{path.name}#0", path.name, str(path), question.question, question.answer, "?"))
    return rows


def collator() -> AnswerCollator:
    return AnswerCollator(load_processor(MODEL), TASK, 3136, 12544)


def contents(samples: list[ParitySample]) -> list[bytes]:
    return [Path(sample.uri).read_bytes() for sample in samples]


def test_labels_are_the_answer_and_the_end_of_the_turn(samples: list[ParitySample]) -> None:
    tokenizer = load_processor(MODEL).tokenizer
    batch = collator()([TrainingRow(s, 1) for s in samples[:8]], contents(samples[:8]))
    for ids, mask, labels, sample in zip(
        batch["input_ids"], batch["attention_mask"], batch["labels"], samples[:8], strict=True
    ):
        supervised = labels != IGNORED_LABEL
        assert tokenizer.decode(labels[supervised]) == f"{sample.answer}<|im_end|>"
        assert torch.equal(ids[supervised], labels[supervised])
        prompt = tokenizer.decode(ids[mask.bool() & ~supervised]).replace("<|image_pad|>" * 16, "<|image_pad|>")
        assert prompt == render(load_processor(MODEL), TASK.answer_prompt(sample.question))


def test_filler_rows_and_missing_images_carry_no_loss(samples: list[ParitySample]) -> None:
    rows = [TrainingRow(samples[0], 1), TrainingRow(samples[1], 1, supervised=False), TrainingRow(samples[2], 1)]
    batch = collator()(rows, [*contents(samples[:2]), b""])
    assert (batch["labels"] != IGNORED_LABEL).any(dim=1).tolist() == [True, False, False]


def test_an_answer_that_spells_a_special_token_is_text(samples: list[ParitySample]) -> None:
    sample = replace(samples[0], answer="the <|image_pad|> token")
    batch = collator()([TrainingRow(sample, 1)], contents(samples[:1]))
    processor = load_processor(MODEL)
    image_token = processor.tokenizer.convert_tokens_to_ids(processor.image_token)
    labels = batch["labels"][batch["labels"] != IGNORED_LABEL]
    assert image_token not in labels
    assert processor.tokenizer.decode(labels) == "the <|image_pad|> token<|im_end|>"


@pytest.mark.parametrize("method", [LoraConfig(rank=4), FullConfig(kind="full")])
def test_only_the_language_model_is_trained(method: LoraConfig | FullConfig) -> None:
    model = prepare_for_training(AutoModelForImageTextToText.from_pretrained(MODEL, dtype=torch.float32), method)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained
    assert {component_of(name) for name in trained} == {"language"}


def test_full_training_includes_the_vision_tower_if_configured() -> None:
    model = AutoModelForImageTextToText.from_pretrained(MODEL, dtype=torch.float32)
    model = prepare_for_training(model, FullConfig(kind="full", components=("language", "projector", "vision")))
    assert all(parameter.requires_grad for parameter in model.parameters())


def leveled(
    samples: list[ParitySample],
    folder: Path,
    settings: LevelConfig,
    known: Sequence[Verdict] = (),
    model: str = MODEL,
) -> Run:
    student = StudentConfig(name="s", model=model, min_pixels=3136, max_pixels=12544, level=settings)
    config = RunConfig.model_validate({**scripted_tree(folder / "images", folder), "students": [student.model_dump()]})
    run = Run.open(config.run_dir)
    plan = plan_epoch(run, FOLDER, SampleSources(lambda: samples, lambda: known), settings)
    fine_tune(run, config, student, PhaseKey("level", "s"), TASK, plan, FOLDER, {True: "a card"})
    return run


def state_of(run: Run) -> TrainingState:
    state = TrainingState.read(run, FOLDER)
    assert state is not None
    return state


@pytest.mark.usefixtures("local_ray")
def test_missing_and_changed_images_are_warned_of_or_end_the_training(
    samples: list[ParitySample], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = LevelConfig(batch_size=8, tokens_per_micro_batch=400, num_workers=2)
    gone = [replace(s, uri="/gone.png") for s in samples[:2]]
    changed = replace(samples[2], content_sha256="0" * 64)
    seen = replace(samples[3], content_sha256=hashlib.sha256(Path(samples[3].uri).read_bytes()).hexdigest())
    run = leveled([*gone, changed, seen, *samples[4:]], tmp_path / "some", settings)
    assert (state_of(run).num_unreadable, state_of(run).num_changed) == (3, 1)
    warning = "WARNING: level s: the images of 3 of 40 samples could no longer be read (changed since"
    assert warning in capsys.readouterr().out
    alone = settings.model_copy(update={"num_workers": 1})
    with pytest.raises(RunError, match=r"the images of 30 of 40 samples .* more than limits\.max_failed_rate"):
        leveled([replace(s, uri="/gone.png") for s in samples[:30]] + samples[30:], tmp_path / "most", alone)
    with pytest.raises(RunError, match=r"Restore the source's files, delete .*students/s/parity and run again"):
        leveled(samples, tmp_path / "most", alone)
    assert not (tmp_path / "most/students/s/parity/complete.json").exists()


def verdict_of(sample: ParitySample) -> Verdict:
    return Verdict(
        f"known {sample.annotation_id}",
        sample.image_id,
        sample.uri,
        "dropped",
        "student_correct",
        question=sample.question,
        answer=sample.answer,
    )


def test_operations_are_counted_as_theory_predicts(samples: list[ParitySample]) -> None:
    """For each weight and token, there are 2 operations in the forward pass and 2 in the backward pass, for
    activations. Those of adapters are few."""
    model = prepare_for_training(AutoModelForImageTextToText.from_pretrained(MODEL, dtype=torch.float32), LoraConfig())
    batch = collator()([TrainingRow(s, 1) for s in samples[:4]], contents(samples[:4]))
    with FlopCounterMode(display=False) as counter:
        answer_loss(model, batch, 1.0, "token").backward()
    tokens = batch["attention_mask"].numel()
    layers = sum(p.numel() for name, p in model.named_parameters() if "language_model.layers" in name)
    vision = sum(p.numel() for name, p in model.named_parameters() if "visual.blocks" in name)
    expected = 4 * tokens * layers + 2 * len(batch["pixel_values"]) * vision
    assert expected < counter.get_total_flops() < 1.6 * expected


@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize(
    ("num_workers", "method", "other"),
    [
        # Other tests train adapters in one worker, too.
        pytest.param(1, LoraConfig(rank=4), {}, marks=pytest.mark.long),
        (2, LoraConfig(rank=4), {"reduction": "sample"}),
        (1, FullConfig(kind="full"), {"gradient_checkpointing": True}),
    ],
)
def test_leveling_trains_and_exports_a_student(
    samples: list[ParitySample],
    tmp_path: Path,
    num_workers: int,
    method: LoraConfig | FullConfig,
    other: dict[str, Any],
) -> None:
    settings = LevelConfig(
        method=method,
        learning_rate=1e-3,
        batch_size=8,
        tokens_per_micro_batch=400,
        num_workers=num_workers,
        checkpoint_every_steps=2,
        **other,
    )
    known = [verdict_of(sample) for sample in samples]
    run = leveled(samples, tmp_path, settings, known)
    state = state_of(run)
    assert (state.step, state.num_steps) == (5, 5)
    assert state.retained.num == 4
    # The student answers numbers and charts, and learns to count.
    assert 2 <= (state.retained.before or 0) <= 4
    assert 2 <= (state.retained.after or 0) <= 4
    (entry,) = state.log.loss_entries
    assert (entry.tflops_per_s or 0) > 0
    merged = AutoModelForImageTextToText.from_pretrained(tmp_path / FOLDER / "merged", dtype=torch.float32)
    before = AutoModelForImageTextToText.from_pretrained(MODEL, dtype=torch.float32).state_dict()
    changed = {name for name, tensor in merged.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed
    assert {component_of(name) for name in changed} == {"language"}
    assert load_processor(str(tmp_path / FOLDER / "merged"))
    assert (tmp_path / FOLDER / "adapter").is_dir() == isinstance(method, LoraConfig)


@pytest.mark.long
@pytest.mark.usefixtures("local_ray")
def test_a_student_with_bad_generation_settings_is_leveled_and_exported(
    samples: list[ParitySample], tmp_path: Path
) -> None:
    """transformers would neither load nor save these settings, except for the penalty."""
    start = tmp_path / "start"
    copytree(MODEL, start)
    bad = {"temperature": 0.9, "num_beams": 1, "early_stopping": True, "num_return_sequences": 3, "pad_token_id": -1}
    (start / "generation_config.json").write_text(json.dumps({**bad, "repetition_penalty": 1.05}))
    run = leveled(samples[:8], tmp_path, LevelConfig(batch_size=8), model=str(start))
    merged = tmp_path / FOLDER / "merged"
    assert AutoModelForImageTextToText.from_pretrained(merged).generation_config.repetition_penalty == 1.05
    repairs = ExportCheck.read(run, FOLDER).repairs
    assert {line.split()[1] for line in repairs} == bad.keys() - {"num_beams"}


@pytest.mark.usefixtures("local_ray")
def test_the_best_weights_on_held_out_samples_are_exported(samples: list[ParitySample], tmp_path: Path) -> None:
    # This learning rate is so high that the model gets worse after its first steps, and training stops early.
    settings = LevelConfig(
        learning_rate=0.3,
        warmup_ratio=0.0,
        batch_size=4,
        holdout=HoldoutConfig(share=0.2, every_steps=1, patience=2),
    )
    run = leveled(samples, tmp_path, settings)
    plan = plan_epoch(run, FOLDER, SampleSources(lambda: samples, lambda: []), settings)
    state = state_of(run)
    losses = {entry.step: entry.eval_loss for entry in state.log.entries if entry.eval_loss is not None}
    assert state.best_step == min(losses, key=lambda step: losses[step])
    assert state.step == state.best_step + 2 < state.num_steps
    merged = AutoModelForImageTextToText.from_pretrained(tmp_path / FOLDER / "merged", dtype=torch.float32)
    rows = list(plan.held_out)
    batch = collator()(rows, contents([row.sample for row in rows]))
    with torch.no_grad():
        loss = answer_loss(merged.eval(), batch, weight_of(batch["labels"], "token"), "token")
    assert float(loss) == pytest.approx(losses[state.best_step], rel=1e-3)
