"""A user's own labelled set, as JSON lines, a JSON list or Parquet."""

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
"""The default column of each field; `BenchmarkConfig.columns` overrides it."""


def read_questions(inputs: Inputs) -> Iterator[LabelledQuestion]:
    """Read questions.

    Every row must have the fields that `columns` lists. If `columns` does not list them, family, answer type, split and
    image id are optional. The default image id is the image's file name or, if the row holds the image, the row's id.
    """
    named = inputs.spec.columns
    if unknown := named.keys() - COLUMNS.keys():
        raise ConfigError(
            "benchmark.columns",
            dict(named),
            f"{min(unknown)!r} is not a field.",
            f"The fields are {', '.join(COLUMNS)}.",
        )
    columns = COLUMNS | dict(named)
    for record in inputs.records("data", tuple(columns.values()), columns["image"]):
        missing = [name for field, name in named.items() if field != "image" and record.get(name) is None]
        if missing:
            raise record.error(f"{missing[0]!r} is missing.", "Check benchmark.columns.")
        name = record.row_id if record.image_uri else record.text(columns["image"])
        yield LabelledQuestion(
            question_id=record.text(columns["id"]),
            image_id=record.optional(columns["image_id"]) or name,
            uri=record.image_uri or inputs.images.uri(record, name),
            question=record.text(columns["question"]),
            answers=record.answers(columns["answers"], may_be_printed=True),
            family=record.optional(columns["family"]) or "all",
            answer_type=record.optional(columns["answer_type"]),
            split=record.optional(columns["split"]) or "",
        )
