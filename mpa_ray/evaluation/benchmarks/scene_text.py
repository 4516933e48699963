"""TextVQA and ST-VQA: text in photographs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from mpa_ray.evaluation.benchmarks.inputs import Inputs
from mpa_ray.evaluation.benchmarks.record import Record
from mpa_ray.records import LabelledQuestion


def read_textvqa(inputs: Inputs) -> Iterator[LabelledQuestion]:
    """Read questions. The folder `train_images` holds the images of both splits, train and val."""
    for record in inputs.records("data", ("question_id", "question", "image_id", "answers")):
        image_id = record.text("image_id")
        names = [f"{folder}{image_id}.jpg" for folder in ("train_images/", "", "test_images/")]
        yield LabelledQuestion(
            question_id=record.text("question_id"),
            image_id=image_id,
            uri=record.image_uri or inputs.images.uri(record, *names),
            question=record.text("question"),
            answers=record.answers("answers"),
            family="all",
        )


def read_stvqa(inputs: Inputs) -> Iterator[LabelledQuestion]:
    """Read an official file of ST-VQA, or a mirror with one row for each image and the image's questions in `qas`.

    A mirror has no ids: they are generated from the split, the row and the position in `qas`.
    """
    for record in inputs.records("data", ("question_id", "question", "file_path", "answers", "qas")):
        pairs = record.get("qas")
        if pairs is None:
            yield _stvqa(inputs, record, record.text("question_id"))
            continue
        if not isinstance(pairs, list):
            raise record.error("'qas' is not a list.", "Use the official files, or a mirror with a list in 'qas'.")
        for number, pair in enumerate(pairs):
            part = replace(record, position=f"{record.position}, pair {number}", values={**record.values, **pair})
            yield _stvqa(inputs, part, f"{record.source}-{record.number}-{number}")


def _stvqa(inputs: Inputs, record: Record, question_id: str) -> LabelledQuestion:
    path = record.row_id if record.image_uri else record.text("file_path")
    return LabelledQuestion(
        question_id=question_id,
        image_id=path,
        uri=record.image_uri or inputs.images.uri(record, path),
        question=record.text("question"),
        answers=record.answers("answers"),
        family="all",
    )
