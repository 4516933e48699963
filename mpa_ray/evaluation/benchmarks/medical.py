"""PathVQA, VQA-RAD and SLAKE: pathology and radiology."""

from __future__ import annotations

from collections.abc import Iterator

from mpa_ray.evaluation.benchmarks.inputs import Inputs
from mpa_ray.records import LabelledQuestion

_FIELDS = (
    "qid",
    "image_name",
    "img_name",
    "question",
    "answer",
    "answer_type",
    "question_type",
    "content_type",
    "q_lang",
)


def read_plain_pairs(inputs: Inputs) -> Iterator[LabelledQuestion]:
    """Read a mirror of PathVQA or VQA-RAD, or VQA-RAD's JSON file.

    A mirror has no ids, so ids are generated from split and row.
    """
    for record in inputs.records(None, _FIELDS):
        name = record.row_id if record.image_uri else record.text("image_name", "image")
        yield LabelledQuestion(
            question_id=record.optional("qid") or f"{record.source}-{record.number}",
            image_id=name,
            uri=record.image_uri or inputs.images.uri(record, name, f"images/{name}"),
            question=record.text("question"),
            answers=record.answers("answer"),
            family=record.optional("question_type") or "all",
            answer_type=record.optional("answer_type"),
        )


def read_slake(inputs: Inputs) -> Iterator[LabelledQuestion]:
    """Read SLAKE. The split of a question is its language, and its family is its content type."""
    for record in inputs.records(None, _FIELDS):
        name = record.text("img_name")
        yield LabelledQuestion(
            question_id=record.text("qid"),
            image_id=name,
            uri=record.image_uri or inputs.images.uri(record, f"imgs/{name}", name),
            question=record.text("question"),
            answers=record.answers("answer"),
            family=record.optional("content_type") or "all",
            answer_type=record.optional("answer_type"),
            split=record.optional("q_lang") or "",
        )
