"""VQA and OK-VQA: open questions about COCO's photographs. The answers of ten annotators are in a second file."""

from __future__ import annotations

import re
from collections.abc import Iterator

from mpa_ray.config import resolve_path
from mpa_ray.errors import ConfigError
from mpa_ray.evaluation.benchmarks.file import File
from mpa_ray.evaluation.benchmarks.inputs import Inputs
from mpa_ray.evaluation.benchmarks.record import Record
from mpa_ray.records import LabelledQuestion

_FIELDS = ("question_id", "image_id", "question", "question_type", "answer_type", "answers")
_SUBTYPE = re.compile(r"(?<![a-zA-Z])(train|val|test)(?:-dev)?(\d{4})?")


def read_vqa(inputs: Inputs) -> Iterator[LabelledQuestion]:
    """Read the two official files and join them by question_id, or read a mirror."""
    if not inputs.files[0].is_parquet:
        for file in inputs.files:
            yield from _joined(inputs, file)
        return
    for record in inputs.records(None, _FIELDS):
        image_id = record.optional("image_id") or record.row_id
        uri = record.image_uri or _image(inputs, record, _subtype(inputs.spec.split or ""))
        yield _question(record, record, image_id, uri)


def _joined(inputs: Inputs, file: File) -> Iterator[LabelledQuestion]:
    questions = _by_id(inputs.entries(file, "questions"))
    second = _annotations_of(inputs, file)
    annotations = _by_id(inputs.entries(second, "annotations"))
    _check_ids(questions, annotations, second)
    subtype = _subtype(inputs.spec.split or "") or _subtype(file.name) or _subtype(str(file.value("data_subtype")))
    for question_id, record in questions.items():
        uri = _image(inputs, record, subtype)
        yield _question(record, annotations[question_id], record.text("image_id"), uri)


def _question(record: Record, annotation: Record, image_id: str, uri: str) -> LabelledQuestion:
    return LabelledQuestion(
        question_id=record.text("question_id"),
        image_id=image_id,
        uri=uri,
        question=record.text("question"),
        answers=annotation.answers("answers"),
        family=annotation.optional("question_type") or "all",
        answer_type=annotation.optional("answer_type"),
    )


def _image(inputs: Inputs, record: Record, subtype: str) -> str:
    number = record.text("image_id")
    if not number.isdigit():
        raise record.error(
            f"image_id {number!r} is not a COCO image number.", "Check that the file belongs to this benchmark."
        )
    plain, full = f"{int(number):012d}.jpg", f"COCO_{subtype}_{int(number):012d}.jpg"
    if not subtype:
        return inputs.images.uri(record, plain)
    return inputs.images.uri(record, full, f"{subtype}/{full}", plain, f"{subtype}/{plain}")


def _subtype(text: str) -> str:
    """Find COCO's name for a split, such as val2014, in a text; empty if there is none."""
    match = _SUBTYPE.search(text)
    if match is None:
        return ""
    return match[1] + (match[2] or ("2015" if match[1] == "test" else "2014"))


def answer_files(inputs: Inputs) -> list[File]:
    """The official files with the answers; empty for a mirror, whose files hold both questions and answers.

    Raises:
        ConfigError: a file is missing.
    """
    return [] if inputs.files[0].is_parquet else [_annotations_of(inputs, file) for file in inputs.files]


def _annotations_of(inputs: Inputs, file: File) -> File:
    if inputs.spec.annotations is not None:
        uri = resolve_path(inputs.spec.annotations)
        return File(inputs.places, uri, uri.rpartition("/")[2], "benchmark.annotations")
    folder, slash, name = file.uri.rpartition("/")
    name = re.sub(r"(OpenEnded|MultipleChoice)_", "", name).replace("questions", "annotations")
    second = File(inputs.places, f"{folder}{slash}{name}", name, "benchmark.annotations")
    try:
        inputs.places.of(second.uri).size(second.uri)
    except OSError as error:
        raise ConfigError(
            "benchmark.annotations",
            None,
            f"answers are missing: {second.uri} does not exist.",
            "Give the file with the annotations. Test splits have none: use another split.",
        ) from error
    return second


def _by_id(records: Iterator[Record]) -> dict[str, Record]:
    by_id: dict[str, Record] = {}
    for record in records:
        question_id = record.text("question_id")
        if question_id in by_id:
            raise record.error(f"repeats question_id {question_id!r}.", "Make the ids unique.")
        by_id[question_id] = record
    return by_id


def _check_ids(questions: dict[str, Record], annotations: dict[str, Record], second: File) -> None:
    """Raise ConfigError if the ids of questions and annotations differ."""
    for records, others, problem in (
        (questions, annotations, "questions without an annotation"),
        (annotations, questions, "annotations without a question"),
    ):
        unmatched = [question_id for question_id in records if question_id not in others]
        if unmatched:
            raise second.error(
                f"there are {len(unmatched)} {problem}, the first with question_id {unmatched[0]!r}.",
                "Give the questions and the annotations of the same split.",
            )
