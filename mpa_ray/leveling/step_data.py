"""From parity samples to a training batch: the inference prompt, the answer, and a loss on the answer alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from mpa_ray.imaging.decode import ImageProblem, prepare
from mpa_ray.leveling.batching import TrainingRow
from mpa_ray.leveling.loss import IGNORED_LABEL
from mpa_ray.models.chat_template import render, turn_of
from mpa_ray.tasks.task import Task


class AnswerCollator:
    """Renders rows exactly as `VllmEngine` renders prompts, and appends the answer and the end of the turn."""

    def __init__(self, processor: Any, task: Task, min_pixels: int, max_pixels: int) -> None:
        self._processor, self._task = processor, task
        self._min_pixels, self._max_pixels = min_pixels, max_pixels
        self._turn = turn_of(processor)

    def __call__(self, rows: Sequence[TrainingRow], contents: Sequence[bytes]) -> dict[str, torch.Tensor]:
        """A right-padded batch of the model's inputs with `labels` (batch, length); -100 everywhere but the answers.

        A row whose image can no longer be read keeps its place, without loss.
        """
        images, readable = zip(*map(self._image, contents), strict=True)
        prompts = [render(self._processor, self._task.answer_prompt(row.sample.question)) for row in rows]
        batch = dict(
            self._processor(text=prompts, images=[[image] for image in images], padding=True, return_tensors="pt")
        )
        completions = [self.completion(row.sample.answer) for row in rows]
        supervised = [row.supervised and seen for row, seen in zip(rows, readable, strict=True)]
        return self._append(batch, completions, supervised)

    def completion(self, answer: str) -> list[int]:
        """The tokens that a model learns to write."""
        tokenizer = self._processor.tokenizer

        def tokens(text: str, *, as_text: bool) -> list[int]:
            # An answer may spell a special token; it is text all the same.
            ids: list[int] = tokenizer(text, add_special_tokens=False, split_special_tokens=as_text)["input_ids"]
            return ids

        return tokens(self._turn.before + answer, as_text=True) + tokens(self._turn.after, as_text=False)

    def _image(self, content: bytes) -> tuple[Image.Image, bool]:
        prepared = prepare(content, self._min_pixels, self._max_pixels)
        if isinstance(prepared, ImageProblem):
            return Image.new("RGB", (56, 56)), False
        return prepared.image, True

    def _append(
        self, batch: dict[str, torch.Tensor], completions: list[list[int]], supervised: list[bool]
    ) -> dict[str, torch.Tensor]:
        prompt_mask = batch["attention_mask"].bool()
        lengths = [int(mask.sum()) + len(told) for mask, told in zip(prompt_mask, completions, strict=True)]
        shape = prompt_mask.shape
        pad = self._processor.tokenizer.pad_token_id
        labels = torch.full((len(completions), max(lengths)), IGNORED_LABEL)
        # Whatever else has one entry per prompt token (`mm_token_type_ids`, for one) is 0 on the answer.
        per_token = {name: t for name, t in batch.items() if t.shape == shape and name != "input_ids"}
        grown = {name: torch.zeros((shape[0], max(lengths)), dtype=t.dtype) for name, t in per_token.items()}
        ids = torch.full((shape[0], max(lengths)), pad)
        for i, (mask, told) in enumerate(zip(prompt_mask, completions, strict=True)):
            start, end = lengths[i] - len(told), lengths[i]
            ids[i, :start], ids[i, start:end] = batch["input_ids"][i][mask], torch.tensor(told)
            for name, tensor in per_token.items():
                grown[name][i, :start] = tensor[i][mask]
            grown["attention_mask"][i, start:end] = 1
            if supervised[i]:
                labels[i, start:end] = torch.tensor(told)
        return {**batch, **grown, "input_ids": ids, "labels": labels}
