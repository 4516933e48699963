"""Row `a`: one batch after another through `transformers.generate`, as the paper's released scripts work.

Batches of 8, padded on the left, greedy, on all cores: the teacher annotates all images and then answers all of its
questions, and after it the student answers them.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Any

from benchmarks.throughput.work import TASK, Timings, Work
from mpa_ray.imaging.prepare import PreparedImage, prepare
from mpa_ray.models.chat_template import load_processor, render

BATCH_SIZE = 8


class Padded:
    """A model that answers batches of padded prompts."""

    def __init__(self, work: Work, model: str) -> None:
        import torch
        from transformers import AutoModelForImageTextToText

        self._work, self._torch = work, torch
        self._processor = load_processor(model)
        self._processor.tokenizer.padding_side = "left"
        self._model = AutoModelForImageTextToText.from_pretrained(model, dtype=getattr(torch, work.dtype)).eval()

    def replies(self, texts: list[str], max_tokens: int) -> list[str]:
        """One reply for each image, to the text of the same position."""
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
        new_tokens = out[:, inputs["input_ids"].shape[1] :]
        replies: list[str] = self._processor.batch_decode(new_tokens, skip_special_tokens=True)
        return replies

    def _images(self, start: int, count: int) -> Iterator[Any]:
        for file in self._work.files()[start : start + count]:
            image = prepare(file.read_bytes(), 56 * 56, self._work.image_size**2)
            assert isinstance(image, PreparedImage)
            yield image.image


def passes(work: Work) -> Timings:
    """Run and time the passes of the teacher, and those of the student if there is one."""
    timings = Timings([], [])
    teacher = Padded(work, work.teacher)
    student = Padded(work, work.student) if work.student is not None else None
    warm_up = [TASK.annotation_prompt()] * BATCH_SIZE
    teacher.replies(warm_up, work.first_tokens)
    for _ in range(work.repetitions):
        started = time.perf_counter()
        annotations = teacher.replies([TASK.annotation_prompt()] * work.num_images, work.first_tokens)
        prompts = [TASK.answer_prompt(work.question_of(annotation)) for annotation in annotations]
        teacher.replies(prompts, work.second_tokens)
        timings.teacher_images_per_s.append(work.num_images / (time.perf_counter() - started))
        if student is not None:
            started = time.perf_counter()
            student.replies(prompts, work.second_tokens)
            timings.student_images_per_s.append(work.num_images / (time.perf_counter() - started))
    return timings


if __name__ == "__main__":
    passes(Work.load(sys.argv[1])).save(sys.argv[2])
