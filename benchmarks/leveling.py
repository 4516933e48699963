"""Leveling against a plain `transformers.Trainer` with random batches: same model, rows, collator and adapters.

    python benchmarks/leveling.py [--num-samples 384] [--repetitions 3]

The samples have mixed lengths: images of 112 to 448 pixels a side, 16 to 256 image tokens. Both train the adapters of a
random Qwen2-VL with 15 million parameters, in about the proportions of the 2B model, for one epoch with 32 samples per
step. The plain Trainer computes a step as 4 random batches of 8, from a data loader with one worker process. Leveling
gets a token budget of 8 of the longest rows. The two alternate, with the same number of threads and the same malloc
settings. Rates leave out the first 5 steps. The loss is measured after training, on rows that neither has seen.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from mpa_ray.config import LevelConfig, LoraConfig, RunConfig
from mpa_ray.demo.world import WorldSpec, paint, sample_question, sample_scene
from mpa_ray.leveling.arms import SampleSources
from mpa_ray.leveling.batching import TrainingRow
from mpa_ray.leveling.collator import AnswerCollator
from mpa_ray.leveling.driver import fine_tune
from mpa_ray.leveling.epoch_plan import plan_epoch
from mpa_ray.leveling.loss import answer_loss, weight_of
from mpa_ray.leveling.trainable import prepare_for_training
from mpa_ray.models.chat_template import load_processor, render
from mpa_ray.observability.progress import say
from mpa_ray.pipeline.cluster import MALLOC, start_ray
from mpa_ray.records import ParitySample
from mpa_ray.run.phase_record import PhaseKey
from mpa_ray.run.run import Run
from mpa_ray.run.training_state import TrainingState
from mpa_ray.tasks.library import TASKS

SIDES = (112, 168, 224, 336, 448)
PIXELS = (112 * 112, 448 * 448)
BATCH, MICRO_BATCH, LOG_EVERY = 32, 8, 5
TASK = TASKS["demo_world"]
NO_CARDS = {True: "", False: ""}
LEVEL = LevelConfig(method=LoraConfig(rank=8), learning_rate=1e-3, batch_size=BATCH, report_to=())


def build_model(folder: Path) -> None:
    """Save a Qwen2-VL with random weights, large enough for computation to take most of the time.

    The vision tower has 0.43 and the embeddings 0.15 of the language model's parameters, about as in Qwen2-VL-2B:
    padding costs time in the language model, and not in the tower.
    """
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    from mpa_ray.demo.architectures import build_qwen2_vl, build_qwen2_vl_processor, build_tokenizer

    tokenizer = build_tokenizer(WorldSpec())
    small: dict[str, Any] = build_qwen2_vl(tokenizer).config.to_dict()
    torch.manual_seed(0)
    config = Qwen2VLConfig(
        text_config=small["text_config"]
        | {
            "hidden_size": 256,
            "intermediate_size": 1024,
            "num_hidden_layers": 8,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "layer_types": ["full_attention"] * 8,
            "vocab_size": 6144,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [8, 12, 12]},
        },
        vision_config=small["vision_config"]
        | {
            "depth": 4,
            "embed_dim": 256,
            "hidden_size": 256,
            "num_heads": 4,
            "mlp_ratio": 4,
        },
        **{name: small[name] for name in small if name.endswith("_token_id")},
        tie_word_embeddings=True,
    )
    model = Qwen2VLForConditionalGeneration(config)
    say(
        f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters, of which the vision tower has "
        f"{sum(p.numel() for p in model.model.visual.parameters()) / 1e6:.1f} M"
    )
    model.save_pretrained(folder)
    build_qwen2_vl_processor(tokenizer, image_size=448).save_pretrained(folder)


def make_samples(folder: Path, count: int, model: str) -> list[ParitySample]:
    """Questions on images of all sizes, with the prompt lengths that identification would have measured."""
    folder.mkdir()
    rng, processor = random.Random(0), load_processor(model)
    samples: list[ParitySample] = []
    while len(samples) < count:
        scene = sample_scene(WorldSpec(), rng)
        question = sample_question(scene, rng)
        if question is None:
            continue
        side = rng.choice(SIDES)
        image = paint(scene).resize((side, side), Image.Resampling.BICUBIC)
        path = folder / f"{len(samples):05d}.png"
        image.save(path)
        prompt = render(processor, TASK.answer_prompt(question.question))
        (tokens,) = processor(text=[prompt], images=[[image]])["input_ids"]
        samples.append(
            ParitySample(
                annotation_id=f"{path.name}#0",
                image_id=path.name,
                uri=str(path),
                question=question.question,
                answer=question.answer,
                student_answer="?",
                num_prompt_tokens=len(tokens),
            )
        )
    return samples


def rate_of(marks: Sequence[tuple[int, float]]) -> float:
    """Samples per second between the first and the last (step, seconds)."""
    (first, began), (last, ended) = marks[0], marks[-1]
    return BATCH * (last - first) / (ended - began)


def train_plainly(model: str, samples: list[ParitySample], folder: Path) -> tuple[float, float, Any]:
    """Samples per second, share of padding, and the trained model of the plain Trainer."""
    from transformers import AutoModelForImageTextToText, Trainer, TrainerCallback, TrainingArguments, set_seed

    set_seed(0)
    collator = AnswerCollator(load_processor(model), TASK, *PIXELS)
    marks: list[tuple[int, float]] = []
    computed = padded = 0

    def collate(rows: list[TrainingRow]) -> dict[str, torch.Tensor]:
        return collator(rows, [Path(row.uri).read_bytes() for row in rows])

    class Mark(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, *_: Any, **__: Any) -> None:  # noqa: ARG002
            if state.global_step % LOG_EVERY == 0:
                marks.append((state.global_step, time.monotonic()))

    class Counting(Trainer):
        def training_step(self, model: Any, inputs: Any, *rest: Any) -> torch.Tensor:
            nonlocal computed, padded
            computed += int(inputs["attention_mask"].sum())
            padded += inputs["attention_mask"].numel()
            return super().training_step(model, inputs, *rest)

    adapted = prepare_for_training(AutoModelForImageTextToText.from_pretrained(model), LEVEL.method)
    trainer = Counting(
        model=adapted,
        train_dataset=[TrainingRow(sample, 0) for sample in samples],
        data_collator=collate,  # type: ignore[arg-type]
        callbacks=[Mark()],
        args=TrainingArguments(
            output_dir=str(folder),
            num_train_epochs=1,
            per_device_train_batch_size=MICRO_BATCH,
            gradient_accumulation_steps=BATCH // MICRO_BATCH,
            learning_rate=LEVEL.learning_rate,
            lr_scheduler_type="linear",
            warmup_steps=int(LEVEL.warmup_ratio * len(samples) / BATCH),
            max_grad_norm=1.0,
            save_strategy="no",
            use_cpu=True,
            remove_unused_columns=False,
            report_to=[],
            disable_tqdm=True,
            dataloader_num_workers=1,
            dataloader_pin_memory=False,
            seed=0,
            logging_strategy="no",
        ),
    )
    trainer.train()
    return rate_of(marks), 1 - computed / padded, trainer.model


def train_by_leveling(model: str, samples: list[ParitySample], folder: Path) -> tuple[float, float, Any]:
    """Samples per second, share of padding, and the trained model of leveling."""
    from transformers import AutoModelForImageTextToText

    longest = max(TrainingRow.of(sample).num_tokens for sample in samples)
    settings = LEVEL.model_copy(update={"tokens_per_micro_batch": MICRO_BATCH * longest})
    tree = {
        "run_dir": str(folder),
        "source": {"path": "."},
        "task": TASK.name,
        "teacher": {"model": "none"},
        "students": [
            {
                "name": "s",
                "model": model,
                "min_pixels": PIXELS[0],
                "max_pixels": PIXELS[1],
                "level": settings.model_dump(),
            }
        ],
    }
    config = RunConfig.model_validate(tree)
    run = Run.open(str(folder))
    folder_in_run = run.student_dir("s")
    plan = plan_epoch(run, folder_in_run, SampleSources(lambda: samples, lambda: []), settings)
    fine_tune(run, config, config.students[0], PhaseKey("level", "s"), TASK, plan, folder_in_run, NO_CARDS)
    state = TrainingState.read(run, folder_in_run)
    if state is None:
        raise SystemExit("leveling has logged nothing")
    log = state.whole_log(run, folder_in_run)
    rate = statistics.harmonic_mean([entry.samples_per_s for entry in log.speed_entries if entry.samples_per_s])
    padding = statistics.fmean(entry.padding_share for entry in log.entries if entry.padding_share is not None)
    return rate, padding, AutoModelForImageTextToText.from_pretrained(folder / folder_in_run / "merged")


@torch.no_grad()  # type: ignore[untyped-decorator]
def loss_of(trained: Any, model: str, rows: list[ParitySample]) -> float:
    """Mean loss per token of the answers."""
    collator = AnswerCollator(load_processor(model), TASK, *PIXELS)
    total = weight = 0.0
    for start in range(0, len(rows), MICRO_BATCH):
        part = rows[start : start + MICRO_BATCH]
        batch = collator([TrainingRow(row, 0) for row in part], [Path(row.uri).read_bytes() for row in part])
        total += float(answer_loss(trained.eval(), batch, 1.0, "token"))
        weight += weight_of(batch["labels"], "token")
    return total / weight


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-samples", type=int, default=384)
    parser.add_argument("--repetitions", type=int, default=3)
    options = parser.parse_args()
    if not MALLOC.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **MALLOC})
    start_ray()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.set_flush_denormal(True)
    rows: dict[str, dict[str, list[float]]] = {
        name: {"samples_per_s": [], "padding_share": [], "loss": []} for name in ("plain Trainer", "mpa_ray")
    }
    with tempfile.TemporaryDirectory() as scratch:
        model = str(Path(scratch, "model"))
        build_model(Path(model))
        samples = make_samples(Path(scratch, "images"), options.num_samples + 64, model)
        held_out, samples = samples[:64], samples[64:]
        for repetition in range(options.repetitions):
            for name, train in (("plain Trainer", train_plainly), ("mpa_ray", train_by_leveling)):
                rate, padding, trained = train(model, samples, Path(scratch, f"{name}-{repetition}".replace(" ", "-")))
                figures = {"samples_per_s": rate, "padding_share": padding, "loss": loss_of(trained, model, held_out)}
                say(f"{name}: {figures}")
                for key, value in figures.items():
                    rows[name][key].append(round(value, 4))
                del trained
                gc.collect()
    medians = {name: statistics.median(row["samples_per_s"]) for name, row in rows.items()}
    results = {
        "conditions": {
            "command": " ".join(["python", *sys.argv]),
            "cores": len(os.sched_getaffinity(0)),
            "machine": platform.machine(),
            "versions": {name: version(name) for name in ("ray", "torch", "transformers", "peft")},
        },
        "rows": rows,
        "ratio": round(medians["mpa_ray"] / medians["plain Trainer"], 3),
    }
    (ROOT / "benchmarks/results/leveling.json").write_text(json.dumps(results, indent=2) + "\n")
    say(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
