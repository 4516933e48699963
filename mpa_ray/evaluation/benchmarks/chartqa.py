"""ChartQA: questions about charts. Some were written by people, and some were generated from summaries of the
charts."""

from __future__ import annotations

from collections.abc import Iterator

from mpa_ray.evaluation.benchmarks.inputs import Inputs
from mpa_ray.evaluation.benchmarks.record import Record
from mpa_ray.records import LabelledQuestion

_FIELDS = ("query", "question", "label", "answer", "human_or_machine", "type")
_PARTS = {"0": "human", "1": "augmented", "human": "human", "machine": "augmented", "augmented": "augmented"}


def read_chartqa(inputs: Inputs) -> Iterator[LabelledQuestion]:
    """Read questions. The files have no ids, so ids are generated from split, part and row number.

    Rows of official files are numbered within each file. Rows of a mirror are numbered over all its files, so the ids
    of a mirror differ from those of official files.
    """
    for record in inputs.records(None, _FIELDS):
        part = _part(record)
        name = record.row_id if record.image_uri else record.text("imgname")
        names = [f"{folder}{name}" for folder in ("png/", "", f"{record.split or '.'}/png/")]
        yield LabelledQuestion(
            question_id="-".join(filter(None, [record.source, part, str(record.number)])),
            image_id=name,
            uri=record.image_uri or inputs.images.uri(record, *names),
            question=record.text("query", "question"),
            answers=record.answers("label", "answer"),
            family="all",
            split=part,
        )


def _part(record: Record) -> str:
    """`human` or `augmented`, from a mirror's column or from the official file's name; empty if neither names the
    part."""
    value = record.optional("human_or_machine", "type")
    if value is None:
        return next((part for part in ("human", "augmented") if part in record.file.rpartition("/")[2]), "")
    part = _PARTS.get(value.partition("_")[0])
    if part is None:
        raise record.error(f"{value!r} is neither human nor augmented.", "Check that the file belongs to ChartQA.")
    return part
