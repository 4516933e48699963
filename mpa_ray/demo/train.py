"""Train the bundled teacher and students from scratch: `python -m mpa_ray.demo.train --out DIR`.

Each model begins with new weights. In the first part of its training, nearly every sample ends with a description of
the whole scene. The students are asked questions of six of the eight families, and never of the other two. In the last
part of its training, the teacher is asked questions of all families, and learns to annotate.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mpa_ray.demo.architectures import DESCRIBE_PROMPT, INTERNVL, QWEN2_VL, TASK, WorldArchitecture
from mpa_ray.demo.world import Question, Scene, WorldSpec, describe, paint, sample_question, sample_scene
from mpa_ray.tasks.task import PREAMBLE, SYSTEM_PROMPT


@dataclass(frozen=True)
class CurriculumPart:
    """A part of a model's training."""

    name: str
    num_steps: int
    peak_learning_rate: float
    final_learning_rate: float
    annotate_share: float
    """Share of samples whose first turn is the annotation prompt; the others answer a question."""
    describe_share: float
    """Share of samples whose last turn describes the scene."""
    num_more_questions: int = 0
    """Number of further turns with one question each. They cost much less than the image and the first prompt."""
    family_weights: dict[str, float] = field(default_factory=dict)
    """The weights of question families. A family that is not named has weight 1."""


DESCRIBE_ALONE_SHARE = 0.15
"""The share of descriptions that are the only turn of their sample. The others follow the questions."""

WITHHELD = {"count": 0.0, "place": 0.0}
"""Families that the students are never asked about, although their descriptions contain the answers."""

HARD = {"chart": 2.0, "word": 2.0, "position": 1.5}

STUDENT = (
    CurriculumPart("student-sight", 1200, 1.5e-3, 2e-5, 0.0, 1.0, 2, HARD | WITHHELD | {"number": 0.0}),
    CurriculumPart("student-numbers", 120, 6e-4, 2e-5, 0.0, 0.5, 2, HARD | WITHHELD | {"number": 2.0}),
)
TEACHER = (
    CurriculumPart("teacher-sight", 1200, 1.5e-3, 2e-4, 0.0, 1.0, 1, dict.fromkeys(("number", "word", "chart"), 0.02)),
    CurriculumPart("teacher", 1200, 1.2e-3, 1e-5, 0.25, 0.0, 4, HARD),
)
MODELS: dict[str, tuple[WorldArchitecture, tuple[CurriculumPart, ...]]] = {
    "student": (QWEN2_VL, STUDENT),
    "student-internvl": (INTERNVL, STUDENT),
    "teacher": (QWEN2_VL, TEACHER),
}
"""The architecture of each model, and the parts of its training in order."""


# --- samples ---------------------------------------------------------------------------------------------------------


class Samples:
    """An endless stream of training batches with newly generated images."""

    def __init__(
        self, architecture: WorldArchitecture, tokenizer: Any, spec: WorldSpec, part: CurriculumPart, seed: int
    ) -> None:
        self._architecture = architecture
        self._encode = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]
        self._spec, self._part, self._rng = spec, part, random.Random(seed)
        self._pad = tokenizer.pad_token_id
        self._image_token_id = tokenizer.convert_tokens_to_ids(architecture.image_text[1])
        self._image = architecture.image(spec)

    def _first_turn(self, scene: Scene) -> tuple[str, str]:
        question = sample_question(scene, self._rng, self._part.family_weights)
        if question is None:
            return TASK.answer_prompt("How many objects are there?"), str(len(scene.shapes()))
        if self._rng.random() < self._part.annotate_share:
            return TASK.annotation_prompt(), f"Question: {question.question}\nAnswer: {question.answer}"
        return TASK.answer_prompt(question.question), question.answer

    def _sequence(self, scene: Scene) -> tuple[list[int], list[int]]:
        prompt, reply = self._first_turn(scene)
        turns = [(prompt, reply)]
        for _ in range(self._part.num_more_questions):
            more = sample_question(scene, self._rng, self._part.family_weights)
            if more is not None:
                turns.append((TASK.answer_text(more.question), more.answer))
        if self._rng.random() < self._part.describe_share:
            turns.append((DESCRIBE_PROMPT, describe(scene)))
            if self._rng.random() < DESCRIBE_ALONE_SHARE:
                turns = [(PREAMBLE + DESCRIBE_PROMPT, describe(scene))]
        head = f"<|im_start|>system\n{SYSTEM_PROMPT}<|im_end|>\n<|im_start|>user\n{self._image}"
        ids: list[int] = []
        labels: list[int] = []
        for user, assistant in turns:
            prompt_ids = self._encode(f"{head}{user}<|im_end|>\n<|im_start|>assistant\n")
            reply_ids = self._encode(f"{assistant}<|im_end|>")
            ids += prompt_ids + reply_ids
            labels += [-100] * len(prompt_ids) + reply_ids
            head = "\n<|im_start|>user\n"
        return ids, labels

    def batches(self, batch_size: int) -> Iterator[dict[str, torch.Tensor]]:
        while True:
            scenes = [sample_scene(self._spec, self._rng) for _ in range(batch_size)]
            pixels = np.stack([np.asarray(paint(s)) for s in scenes])
            rows = [self._sequence(s) for s in scenes]
            length = -(-max(len(ids) for ids, _ in rows) // 32) * 32
            ids = torch.tensor([i + [self._pad] * (length - len(i)) for i, _ in rows])
            labels = torch.tensor([t + [-100] * (length - len(t)) for _, t in rows])
            mask = torch.tensor([[1] * len(i) + [0] * (length - len(i)) for i, _ in rows])
            yield {
                "input_ids": ids,
                "attention_mask": mask,
                "labels": labels,
                **self._architecture.inputs(pixels, ids, self._image_token_id),
            }


# --- training --------------------------------------------------------------------------------------------------------


def learning_rate(part: CurriculumPart, step: int) -> float:
    """Return the learning rate of a step: a linear warm-up, then a cosine from the part's peak to its final rate."""
    warmup = min(150, part.num_steps // 4)
    if step < warmup:
        return part.peak_learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, part.num_steps - warmup)
    low, high = part.final_learning_rate, part.peak_learning_rate
    return low + (high - low) * 0.5 * (1 + math.cos(math.pi * progress))


def make_optimizers(model: Any) -> list[torch.optim.Optimizer]:
    """Make Muon for the matrices inside the layers, and AdamW for embeddings, norms and biases.

    Muon's updates are scaled to the size of AdamW's (Liu et al., arXiv 2502.16982), so that one schedule serves both.
    """
    inner = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    outer = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    return [
        torch.optim.Muon(inner, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(outer, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def train_part(
    model: Any,
    samples: Samples,
    part: CurriculumPart,
    batch_size: int,
    log_path: Path,
    checkpoint: Callable[[int], None],
) -> None:
    optimizers = make_optimizers(model)
    model.train()
    forward = torch.compile(model)
    started, losses = time.monotonic(), []
    for step, batch in enumerate(samples.batches(batch_size)):
        if step == part.num_steps:
            break
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(part, step)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = forward(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
        if step % 50 == 49:
            row = {
                "part": part.name,
                "step": step + 1,
                "loss": round(float(np.mean(losses[-50:])), 4),
                "minutes": round((time.monotonic() - started) / 60, 1),
            }
            print(json.dumps(row), flush=True)
            with log_path.open("a") as log:
                log.write(json.dumps(row) + "\n")
        if step % 200 == 199:
            checkpoint(step + 1)


@torch.no_grad()
def exact_match_shares(
    architecture: WorldArchitecture, model: Any, tokenizer: Any, spec: WorldSpec, num_images: int, seed: int
) -> dict[str, float]:
    """Return the shares of greedy replies that are exactly right: of all answers, by family, and of descriptions."""
    model.eval()
    rng = random.Random(seed)
    pairs: list[tuple[Scene, Question]] = []
    while len(pairs) < num_images:
        scene = sample_scene(spec, rng)
        question = sample_question(scene, rng)
        if question is not None:
            pairs.append((scene, question))
    scenes = [scene for scene, _ in pairs]
    prompts = [TASK.answer_prompt(question.question) for _, question in pairs]
    answers = _replies(architecture, model, tokenizer, scenes, prompts, 12)
    right: dict[str, list[bool]] = {}
    for (_, question), answer in zip(pairs, answers, strict=True):
        right.setdefault(question.family, []).append(answer == question.answer)
    described = _replies(architecture, model, tokenizer, scenes, [PREAMBLE + DESCRIBE_PROMPT] * len(scenes), 64)
    return {
        "all": float(np.mean([h for hits in right.values() for h in hits])),
        **{family: float(np.mean(hits)) for family, hits in sorted(right.items())},
        "described": float(np.mean([d == describe(s) for s, d in zip(scenes, described, strict=True)])),
    }


def _replies(
    architecture: WorldArchitecture,
    model: Any,
    tokenizer: Any,
    scenes: list[Scene],
    prompts: list[str],
    max_new_tokens: int,
) -> list[str]:
    image = architecture.image(scenes[0].spec)
    image_token_id = tokenizer.convert_tokens_to_ids(architecture.image_text[1])
    replies: list[str] = []
    for at in range(0, len(scenes), 50):
        some = scenes[at : at + 50]
        texts = [
            f"<|im_start|>system\n{SYSTEM_PROMPT}<|im_end|>\n<|im_start|>user\n{image}{prompt}<|im_end|>\n"
            "<|im_start|>assistant\n"
            for prompt in prompts[at : at + 50]
        ]
        inputs = tokenizer(texts, add_special_tokens=False, return_tensors="pt", padding=True, padding_side="left")
        pixels = np.stack([np.asarray(paint(s)) for s in some])
        out = model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            **architecture.inputs(pixels, inputs["input_ids"], image_token_id),
            max_new_tokens=max_new_tokens,
            do_sample=False,
        )
        texts = tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        replies += [text.strip() for text in texts]
    return replies


def save(model: Any, processor: Any, path: Path) -> None:
    model.save_pretrained(path)
    processor.save_pretrained(path)


def train_model(name: str, out: Path, seed: int, batch_size: int) -> None:
    """Train one model through its curriculum and save it as `out/name`, with a checkpoint every 200 steps."""
    torch.manual_seed(seed)
    spec = WorldSpec()
    architecture, parts = MODELS[name]
    model, processor = architecture.build(spec)
    tokenizer = processor.tokenizer
    # By default, some architectures continue to generate after the end of the turn.
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    print(
        f"{name}: {sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, {len(tokenizer)} tokens; "
        f"preamble {len(tokenizer(PREAMBLE)['input_ids'])} tokens",
        flush=True,
    )
    for index, part in enumerate(parts):
        samples = Samples(architecture, tokenizer, spec, part, seed * 1000 + index)

        def checkpoint(step: int, part: CurriculumPart = part) -> None:
            save(model, processor, out / "checkpoints" / f"{part.name}-{step}")
            print(
                part.name, step, exact_match_shares(architecture, model, tokenizer, spec, 100, seed=20_000), flush=True
            )
            model.train()

        train_part(model, samples, part, batch_size, out / f"{name}.jsonl", checkpoint)
    save(model, processor, out / name)
    print(name, exact_match_shares(architecture, model, tokenizer, spec, 600, seed=10_000), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for teacher/, student/ and student-internvl/")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=48)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.models:
        train_model(name, options.out, options.seed, options.batch_size)


if __name__ == "__main__":
    main()
