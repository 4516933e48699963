"""ChartQA: charts with questions that people wrote, and with questions generated from summaries."""

from __future__ import annotations

from collections.abc import Iterator

from mpa_ray.evaluation.benchmarks.inputs import Inputs
from mpa_ray.evaluation.benchmarks.record import Record
from mpa_ray.records import LabelledQuestion

_FIELDS = ("query", "question", "label", "answer", "human_or_machine", "type")
_PARTS = {"0": "human", "1": "augmented", "human": "human", "machine": "augmented", "augmented": "augmented"}


def read_chartqa(inputs: Inputs) -> Iterator[LabelledQuestion]:
    """Read questions. The files have no ids, so ids are generated from split, part and row number.

    Rows are numbered within each official file, but across all files of a split in a mirror, so official files and
    mirrors get different ids.
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
    """`human` or `augmented`, from a mirror's column or the official file's name; empty if neither says which."""
    value = record.optional("human_or_machine", "type")
    if value is None:
        return next((part for part in ("human", "augmented") if part in record.file.rpartition("/")[2]), "")
    part = _PARTS.get(value.partition("_")[0])
    if part is None:
        raise record.error(f"{value!r} is neither human nor augmented.", "Check that the file belongs to ChartQA.")
    return part
