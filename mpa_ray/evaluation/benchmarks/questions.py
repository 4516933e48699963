"""Any other labelled set: JSON lines, a JSON list or Parquet, its fields by name."""

from __future__ import annotations

from collections.abc import Iterator

from mpa_ray.errors import ConfigError
from mpa_ray.evaluation.benchmarks.inputs import Inputs
from mpa_ray.records import LabelledQuestion

COLUMNS = {
    "id": "question_id",
    "image": "image",
    "question": "question",
    "answers": "answers",
    "family": "family",
    "answer_type": "answer_type",
    "split": "split",
    "image_id": "image_id",
}
"""What each part of a question is called unless `BenchmarkConfig.columns` says otherwise."""


def read_questions(inputs: Inputs) -> Iterator[LabelledQuestion]:
    """Without an image id, the image's name stands for it, or the row that holds the image. What `columns` names has to
    be there; of the rest family, answer type, split and image id may be absent."""
    named = inputs.spec.columns
    if unknown := named.keys() - COLUMNS.keys():
        raise ConfigError(
            "benchmark.columns", dict(named), f"there is no {min(unknown)!r}.", f"Name {', '.join(COLUMNS)}."
        )
    columns = COLUMNS | dict(named)
    for record in inputs.records("data", tuple(columns.values()), columns["image"]):
        absent = [name for part, name in named.items() if part != "image" and record.get(name) is None]
        if absent:
            raise record.error(f"there is no {absent[0]!r}.", "Check benchmark.columns.")
        name = record.row_id if record.image_uri else record.text(columns["image"])
        yield LabelledQuestion(
            question_id=record.text(columns["id"]),
            image_id=record.optional(columns["image_id"]) or name,
            uri=record.image_uri or inputs.images.uri(record, name),
            question=record.text(columns["question"]),
            answers=record.answers(columns["answers"]),
            family=record.optional(columns["family"]) or "all",
            answer_type=record.optional(columns["answer_type"]),
            split=record.optional(columns["split"]) or "",
        )
