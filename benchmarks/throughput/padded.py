"""Row `a`: how the paper's released scripts work, one batch after another through `transformers.generate`.

Batches of 8, padded on the left, greedy, on all cores: the teacher annotates all images, then answers all of its
questions, then the student does.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Any

from benchmarks.throughput.work import TASK, Timings, Work
from mpa_ray.imaging.decode import PreparedImage, prepare
from mpa_ray.models.chat_template import load_processor, render

BATCH_SIZE = 8


class Padded:
    """A model with its processor."""

    def __init__(self, work: Work, model: str) -> None:
        import torch
        from transformers import AutoModelForImageTextToText

        self._work, self._torch = work, torch
        self._processor = load_processor(model)
        self._processor.tokenizer.padding_side = "left"
        self._model = AutoModelForImageTextToText.from_pretrained(model, dtype=getattr(torch, work.dtype)).eval()

    def answered(self, texts: list[str], max_tokens: int) -> list[str]:
        """The replies to one text for each image."""
        replies: list[str] = []
        for start in range(0, len(texts), BATCH_SIZE):
            replies += self._batch(start, texts[start : start + BATCH_SIZE], max_tokens)
        return replies

    def _batch(self, start: int, texts: list[str], max_tokens: int) -> list[str]:
        images = list(self._images(start, len(texts)))
        prompts = [render(self._processor, text) for text in texts]
        inputs = self._processor(text=prompts, images=images, padding=True, return_tensors="pt").to(self._model.dtype)
        with self._torch.inference_mode():
            out = self._model.generate(**inputs, max_new_tokens=max_tokens, do_sample=False)
        written = out[:, inputs["input_ids"].shape[1] :]
        found: list[str] = self._processor.batch_decode(written, skip_special_tokens=True)
        return found

    def _images(self, start: int, count: int) -> Iterator[Any]:
        for file in self._work.files()[start : start + count]:
            image = prepare(file.read_bytes(), 56 * 56, self._work.image_size**2)
            assert isinstance(image, PreparedImage)
            yield image.image


def passes(work: Work) -> Timings:
    found = Timings([], [])
    teacher = Padded(work, work.teacher)
    student = Padded(work, work.student) if work.student is not None else None
    warm = [TASK.annotation_prompt()] * BATCH_SIZE
    teacher.answered(warm, work.first_tokens)
    for _ in range(work.repetitions):
        started = time.perf_counter()
        replies = teacher.answered([TASK.annotation_prompt()] * work.num_images, work.first_tokens)
        asked = [TASK.answer_prompt(work.question_of(reply)) for reply in replies]
        teacher.answered(asked, work.second_tokens)
        found.teacher_images_per_s.append(work.num_images / (time.perf_counter() - started))
        if student is not None:
            started = time.perf_counter()
            student.answered(asked, work.second_tokens)
            found.student_images_per_s.append(work.num_images / (time.perf_counter() - started))
    return found


if __name__ == "__main__":
    passes(Work.load(sys.argv[1])).save(sys.argv[2])
