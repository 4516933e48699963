"""DocVQA and InfographicVQA: scanned pages and infographics."""

from __future__ import annotations

from collections.abc import Iterator

from mpa_ray.evaluation.benchmarks.inputs import Inputs
from mpa_ray.evaluation.benchmarks.record import Record
from mpa_ray.records import LabelledQuestion

_FIELDS = (
    "questionId",
    "question",
    "answers",
    "answer_type",
    "question_types",
    "operation/reasoning",
    "ucsf_document_id",
    "ucsf_document_page_no",
    "image_url",
    "image_local_name",
)


def read_documents(inputs: Inputs) -> Iterator[LabelledQuestion]:
    """Read questions. A question's family is its question type in DocVQA and its operation in InfographicVQA, if the
    file has this column."""
    for record in inputs.records("data", _FIELDS):
        if record.image_uri is None:
            image_id = record.text("image_local_name", "image")
            uri = inputs.images.uri(record, image_id, image_id.rpartition("/")[2])
        else:
            image_id, uri = _image_id(record), record.image_uri
        yield LabelledQuestion(
            question_id=record.text("questionId"),
            image_id=image_id,
            uri=uri,
            question=record.text("question"),
            answers=record.answers("answers"),
            family=record.optional("question_types", "operation/reasoning") or "all",
            answer_type=record.optional("answer_type"),
        )


def _image_id(record: Record) -> str:
    """The id of a mirror's image. For DocVQA, the id consists of document and page, as in the official image names."""
    document, page = record.optional("ucsf_document_id"), record.optional("ucsf_document_page_no")
    if document and page:
        return f"{document}_{page}"
    return record.optional("image_url") or record.row_id
