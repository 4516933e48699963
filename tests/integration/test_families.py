"""Every model family: what is trained, on which tokens, and with which gradient."""

from __future__ import annotations

import faulthandler
import gc
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import multiprocessing
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModelForImageTextToText

from mpa_ray.config import FullConfig, LoraConfig
from mpa_ray.demo.world import WorldSpec, paint, sample_question, sample_scene
from mpa_ray.imaging.prepare import ImageScaling, PreparedImage
from mpa_ray.leveling.batching import TrainingRow, micro_batches
from mpa_ray.leveling.collator import AnswerCollator
from mpa_ray.leveling.loss import IGNORED_LABEL, Reduction, answer_loss, weight_of
from mpa_ray.leveling.trainable import prepare_for_training
from mpa_ray.models.chat_template import load_processor, render, turn_of
from mpa_ray.models.components import component_of
from mpa_ray.records import ParitySample
from mpa_ray.tasks.library import TASKS
from tests.families import FAMILIES, build

TASK = TASKS["demo_world"]
PIXELS = (3136, 12544)
NUM_WORKERS = 2


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("families")
    return {family: str(build(family, folder / family)) for family in FAMILIES}


def rows_in(folder: Path, count: int = 8) -> list[TrainingRow]:
    """Questions whose answers have different lengths."""
    rng = random.Random(5)
    rows: list[TrainingRow] = []
    while len(rows) < count:
        scene = sample_scene(WorldSpec(), rng)
        question = sample_question(scene, rng)
        if question is not None:
            path = folder / f"{len(rows)}.png"
            paint(scene).save(path)
            answer = " and ".join([question.answer] * (1 + len(rows) % 4))
            sample = ParitySample(f"{len(rows)}#0", path.name, str(path), question.question, answer, "?")
            rows.append(TrainingRow(sample, 60 + 10 * (len(rows) % 4)))
    return rows


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[TrainingRow]:
    return rows_in(tmp_path_factory.mktemp("rows"))


def collated(checkpoint: str, rows: list[TrainingRow]) -> dict[str, torch.Tensor]:
    collator = AnswerCollator(load_processor(checkpoint), TASK, *PIXELS)
    return collator(rows, [Path(row.uri).read_bytes() for row in rows])


def loaded(checkpoint: str) -> Any:
    return AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32).eval()


def gradient(model: Any) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad and p.grad is not None])


def backward(model: Any, batches: list[dict[str, torch.Tensor]], reduction: Reduction) -> float:
    total = sum(weight_of(batch["labels"], reduction) for batch in batches)
    losses = [answer_loss(model, batch, total, reduction) for batch in batches]
    for loss in losses:
        loss.backward()
    return sum(float(loss.detach()) for loss in losses)


def difference(one: torch.Tensor, two: torch.Tensor) -> float:
    return float((one - two).norm() / one.norm())


@pytest.mark.parametrize("family", FAMILIES)
def test_labels_decode_to_the_answer_and_the_end_of_the_turn(
    family: str, checkpoints: dict[str, str], rows: list[TrainingRow]
) -> None:
    processor = load_processor(checkpoints[family])
    turn, batch = turn_of(processor), collated(checkpoints[family], rows)
    for ids, mask, labels, row in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], rows, strict=True):
        supervised = labels != IGNORED_LABEL
        assert processor.tokenizer.decode(labels[supervised]) == f"{turn.before}{row.sample.answer}{turn.after}"
        assert torch.equal(ids[supervised], labels[supervised])
        # The row ends with the answer; before it comes the prompt as inference renders it.
        length = int(mask.sum())
        assert supervised[length - int(supervised.sum()) : length].all()
        alone = processor(
            text=[render(processor, TASK.answer_prompt(row.sample.question))],
            images=[[image(processor, row)]],
            return_tensors="pt",
        )["input_ids"][0]
        assert torch.equal(ids[: length - int(supervised.sum())], alone)


def image(processor: Any, row: TrainingRow) -> Any:
    prepared = ImageScaling.of(processor, *PIXELS).prepare(Path(row.uri).read_bytes())
    assert isinstance(prepared, PreparedImage)
    return prepared.image


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_equals_that_of_the_model(family: str, checkpoints: dict[str, str], rows: list[TrainingRow]) -> None:
    model, batch = loaded(checkpoints[family]), collated(checkpoints[family], rows)
    with torch.no_grad():
        ours = answer_loss(model, batch, weight_of(batch["labels"], "token"), "token")
        theirs = model(**batch).loss
    assert float(ours) == pytest.approx(float(theirs), rel=1e-5)


@pytest.mark.parametrize("reduction", ["token", "sample"])
@pytest.mark.parametrize("family", FAMILIES)
def test_four_micro_batches_give_the_gradient_of_the_whole_batch(
    family: str, reduction: Reduction, checkpoints: dict[str, str], rows: list[TrainingRow]
) -> None:
    whole, parts = loaded(checkpoints[family]), loaded(checkpoints[family])
    loss = backward(whole, [collated(checkpoints[family], rows)], reduction)
    cut = [collated(checkpoints[family], rows[start : start + 2]) for start in range(0, 8, 2)]
    assert backward(parts, cut, reduction) == pytest.approx(loss, rel=1e-5)
    assert difference(gradient(whole), gradient(parts)) < 1e-4


def on_worker(rank: int, checkpoints: dict[str, str], rows: list[TrainingRow], folder: str) -> None:
    """One of two workers: its share of the step for every family, with gradients averaged by DDP."""
    # A worker that waits for the other for too long prints where and ends, so that none is left behind.
    faulthandler.dump_traceback_later(120, exit=True)
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=NUM_WORKERS)
    for family, checkpoint in checkpoints.items():
        own_gradient = gradient_of_worker(rank, checkpoint, rows)
        if rank == 0:
            torch.save(own_gradient, f"{folder}/{family}.pt")
    # Free the models that hold the process group before the group: otherwise their destructors wait for each other.
    gc.collect()
    torch.distributed.destroy_process_group()


def gradient_of_worker(rank: int, checkpoint: str, rows: list[TrainingRow]) -> dict[str, torch.Tensor]:
    model = DistributedDataParallel(loaded(checkpoint), find_unused_parameters=True)
    batches = [collated(checkpoint, list(batch)) for batch in micro_batches(rows, 200, NUM_WORKERS)[rank]]
    total = torch.tensor(float(sum(weight_of(batch["labels"], "token") for batch in batches)))
    torch.distributed.all_reduce(total)
    for number, batch in enumerate(batches, 1):
        model.require_backward_grad_sync = number == len(batches)
        (NUM_WORKERS * answer_loss(model, batch, float(total), "token")).backward()
    return gradient(model)


def test_two_workers_give_the_gradient_of_one(
    checkpoints: dict[str, str], rows: list[TrainingRow], tmp_path: Path
) -> None:
    multiprocessing.spawn(on_worker, (checkpoints, rows, str(tmp_path)), nprocs=NUM_WORKERS)  # type: ignore[attr-defined]
    for family, checkpoint in checkpoints.items():
        model = loaded(checkpoint)
        backward(model, [collated(checkpoint, rows)], "token")
        assert difference(gradient(model), torch.load(tmp_path / f"{family}.pt")) < 1e-4, family


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_are_on_every_linear_layer_of_the_configured_components(
    family: str, checkpoints: dict[str, str]
) -> None:
    from peft.tuners.lora import LoraLayer

    for components in (("language",), ("projector", "vision")):
        plain = loaded(checkpoints[family])
        head = plain.get_output_embeddings()
        expected = {
            name
            for name, module in plain.named_modules()
            if isinstance(module, torch.nn.Linear) and module is not head and component_of(name) in components
        }
        adapted = prepare_for_training(loaded(checkpoints[family]), LoraConfig(rank=2, components=components))
        layers = {name for name, module in adapted.get_base_model().named_modules() if isinstance(module, LoraLayer)}
        assert layers == expected
        assert {component_of(name) for name in layers} == set(components)
        trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
        assert all("lora_" in name for name in trained)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_has_a_component_and_only_the_configured_ones_are_trained(
    family: str, checkpoints: dict[str, str]
) -> None:
    plain = {name: component_of(name) for name, _ in loaded(checkpoints[family]).named_parameters()}
    assert set(plain.values()) == {"language", "projector", "vision"}
    assert all(
        component == "language" for name, component in plain.items() if "language_model" in name or "text_model" in name
    )
    for component in ("language", "projector", "vision"):
        model = prepare_for_training(loaded(checkpoints[family]), FullConfig(kind="full", components=(component,)))
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        assert trained == {name for name, part in plain.items() if part == component}
