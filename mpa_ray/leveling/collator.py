"""Turn training rows into a batch: the prompt as in inference, the answer, and labels only on the answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image

from mpa_ray.config import MAX_IMAGE_PIXELS
from mpa_ray.imaging.decode import ImageProblem
from mpa_ray.imaging.prepare import ImageScaling
from mpa_ray.leveling.batching import TrainingRow
from mpa_ray.leveling.loss import IGNORED_LABEL
from mpa_ray.models.chat_template import render, turn_of
from mpa_ray.tasks.task import Task

Batch = dict[str, torch.Tensor]
"""The inputs of a model, and `labels` (batch, length), which are -100 everywhere except on answers."""


class AnswerCollator:
    """Renders prompts exactly as `VllmEngine` does, and appends the answer and the end of the turn."""

    def __init__(
        self,
        processor: Any,
        task: Task,
        min_pixels: int,
        max_pixels: int,
        max_image_pixels: int = MAX_IMAGE_PIXELS,
        chat_template_args: Mapping[str, Any] | None = None,
    ) -> None:
        self._processor = processor
        self._task = task
        self._scaling = ImageScaling.of(processor, min_pixels, max_pixels, max_image_pixels)
        self._chat_template_args = chat_template_args or {}
        self._turn = turn_of(processor, self._chat_template_args)

    def __call__(self, rows: Sequence[TrainingRow], contents: Sequence[bytes]) -> Batch:
        """A right-padded batch. A row whose image cannot be read keeps its place in the batch, without labels.

        Args:
            rows: The rows of the batch.
            contents: The image file of each row; empty if it could not be read.
        """
        images, readable = zip(*map(self._image, contents), strict=True)
        prompts = [
            render(self._processor, self._task.answer_prompt(row.sample.question), self._chat_template_args)
            for row in rows
        ]
        prompt_batch = dict(
            self._processor(
                text=prompts,
                images=[[image] for image in images],
                padding=True,
                return_tensors="pt",
                **self._scaling.processor_arguments(images),
            )
        )
        answers = [self.answer_tokens(row.sample.answer) for row in rows]
        supervised = [row.supervised and is_readable for row, is_readable in zip(rows, readable, strict=True)]
        return self._append(prompt_batch, answers, supervised)

    def answer_tokens(self, answer: str) -> list[int]:
        """The tokens that the model learns to write, up to the end of its turn."""
        tokenizer = self._processor.tokenizer

        def tokens(text: str, *, as_text: bool) -> list[int]:
            # If an answer contains the text of a special token, the text is tokenized like any other.
            ids: list[int] = tokenizer(text, add_special_tokens=False, split_special_tokens=as_text)["input_ids"]
            return ids

        return tokens(self._turn.before + answer, as_text=True) + tokens(self._turn.after, as_text=False)

    def _image(self, content: bytes) -> tuple[Image.Image, bool]:
        """The image and True, or a blank image and False if the file cannot be decoded."""
        prepared = self._scaling.prepare(content)
        if isinstance(prepared, ImageProblem):
            return self._scaling.blank(), False
        return prepared.image, True

    def _append(self, prompts: Batch, answers: list[list[int]], supervised: list[bool]) -> Batch:
        """Append the answers to a batch of prompts, and pad again."""
        prompt_mask = prompts["attention_mask"].bool()
        lengths = [int(mask.sum()) + len(answer) for mask, answer in zip(prompt_mask, answers, strict=True)]
        shape = (len(answers), max(lengths))
        labels = torch.full(shape, IGNORED_LABEL)
        ids = torch.full(shape, self._processor.tokenizer.pad_token_id)
        # Other inputs with an entry per prompt token, such as `mm_token_type_ids`, are 0 on the answer.
        per_token = {name: t for name, t in prompts.items() if t.shape == prompt_mask.shape and name != "input_ids"}
        extended = {name: torch.zeros(shape, dtype=tensor.dtype) for name, tensor in per_token.items()}
        for i, (mask, answer) in enumerate(zip(prompt_mask, answers, strict=True)):
            start, end = lengths[i] - len(answer), lengths[i]
            ids[i, :start] = prompts["input_ids"][i][mask]
            ids[i, start:end] = torch.tensor(answer)
            for name, tensor in per_token.items():
                extended[name][i, :start] = tensor[i][mask]
            extended["attention_mask"][i, start:end] = 1
            if supervised[i]:
                labels[i, start:end] = torch.tensor(answer)
        return {**prompts, **extended, "input_ids": ids, "labels": labels}
