"""The rows of a run's datasets. Each kind of row is a frozen dataclass, from which its Arrow schema is derived."""

from __future__ import annotations

import types
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Generic, Protocol, TypeVar, get_args, get_origin, get_type_hints

import pyarrow as pa

from mpa_ray.redaction import without_secrets
from mpa_ray.textual import readable


class State(StrEnum):
    """The final state of a row."""

    KEPT = "kept"
    DROPPED = "dropped"
    FAILED = "failed"


class Reason(StrEnum):
    """Why a row was dropped or failed. The parser gives further reasons: see `ReplyError`."""

    TEACHER_INCONSISTENT = "teacher_inconsistent"
    STUDENT_CORRECT = "student_correct"
    STUDENT_NOT_ASKED = "student_not_asked"
    REPLY_TRUNCATED = "reply_truncated"
    REPEATED_QUESTION = "repeated_question"
    SECOND_ANSWER_TRUNCATED = "second_answer_truncated"
    PROMPT_TOO_LONG = "prompt_too_long"
    SPECIAL_TOKEN_IN_TEXT = "special_token_in_text"
    DUPLICATE_OF = "duplicate_of"
    UNREADABLE = "unreadable"
    STORAGE = "storage"
    """The file could not be read in any of three runs of the command, for a reason that may be temporary."""
    TOO_FEW_BYTES = "too_few_bytes"
    TOO_MANY_BYTES = "too_many_bytes"
    IMAGE_CHANGED = "image_changed"
    EMPTY_FILE = "empty_file"
    NOT_AN_IMAGE = "not_an_image"
    UNSUPPORTED_FORMAT = "unsupported_format"
    TRUNCATED_IMAGE = "truncated_image"
    TOO_MANY_PIXELS = "too_many_pixels"
    EXTREME_ASPECT_RATIO = "extreme_aspect_ratio"
    REQUEST_FAILED = "request_failed"
    KILLS_ENGINE = "kills_engine"


@dataclass(frozen=True)
class ImageRef:
    """An image of the corpus that has not been read yet."""

    image_id: str
    """Stable, and unique in the run. For a file, its path below the source's root; for an image in a container, such as
    a tar file, the container's path and the image's name or row number."""
    uri: str
    """The address of a file or of a part of a file; `mpa_ray.corpus.locator` describes its form."""
    num_bytes: int | None = None
    """The size of the image's file in bytes; None if the source does not list sizes."""
    metadata: str | None = None
    """The image's values in the columns that `source.metadata` names, as a JSON object."""


@dataclass(frozen=True)
class ImageDigest:
    """The columns of D_PA that identify the content of an image."""

    image_id: str
    content_sha256: str | None


@dataclass(frozen=True)
class Annotation:
    """A row of D_PA: a pair that the teacher wrote for an image, or the reason why there is none.

    Every image has at least one row.
    """

    annotation_id: str
    image_id: str
    uri: str
    state: str
    """`kept` (a pair with a second answer), `dropped` or `failed`."""
    reason: str | None = None
    detail: str | None = None
    attempts: int = 1
    """The number of attempts at the image's shard or, for reason `kills_engine`, at the image itself."""
    metadata: str | None = None
    num_bytes: int | None = None
    """The size of the file in bytes; None if the file was not read."""
    content_sha256: str | None = None
    """The digest of the file's bytes; None if the file was not read."""
    duplicate_of: str | None = None
    """The id of an earlier image of the corpus that has the same bytes."""
    question: str | None = None
    answer: str | None = None
    second_answer: str | None = None
    """The teacher's answer when it is asked its own question; the most frequent answer if several are sampled."""
    second_answer_share: float | None = None
    """The share of the sampled second answers that equal `second_answer`."""
    reply: str | None = None
    """The whole reply to the annotation prompt."""
    finish_reason: str | None = None
    second_finish_reason: str | None = None
    mean_logprob: float | None = None
    """The mean log-probability (natural logarithm) of the reply's tokens."""
    second_mean_logprob: float | None = None
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0
    num_second_prompt_tokens: int = 0
    """Tokens of the prompts for the second answers, summed over all second answers to this question."""
    num_second_cached_tokens: int = 0
    """How many of `num_second_prompt_tokens` the engine found in its cache."""
    num_second_output_tokens: int = 0
    """Tokens of the second answers, summed."""
    num_uncached_image_tokens: int = 0
    """Image tokens that the engine computed again for the second answers, summed; 0 if all image tokens were in its
    cache each time."""
    first_pass_s: float = 0.0
    """Seconds from the annotation prompt to the reply."""
    second_pass_s: float = 0.0
    """Seconds from the prompt to the second answer, summed over all second answers to this question."""


@dataclass(frozen=True)
class Verdict:
    """The result of comparing a student's answer with an annotation."""

    annotation_id: str
    image_id: str
    uri: str
    state: str
    reason: str | None = None
    detail: str | None = None
    attempts: int = 1
    metadata: str | None = None
    question: str | None = None
    answer: str | None = None
    second_answer: str | None = None
    student_answer: str | None = None
    teacher_agrees: bool | None = None
    student_agrees: bool | None = None
    """None if the student was not asked or could not answer."""
    finish_reason: str | None = None
    mean_logprob: float | None = None
    num_prompt_tokens: int = 0
    """Tokens of the student's prompt, including the image. Leveling groups rows of similar length by this number."""
    content_sha256: str | None = None
    """The digest of the file that the teacher saw."""

    @property
    def cell(self) -> str:
        """A name that says whether the teacher's second answer and the student's answer agree with the first answer.

        For example, `teacher_yes_student_no`; `not_judged` if no answers were compared.
        """
        if self.teacher_agrees is None:
            return "not_judged"
        student = {True: "yes", False: "no", None: "not_asked"}[self.student_agrees]
        return f"teacher_{'yes' if self.teacher_agrees else 'no'}_student_{student}"

    def sample(self) -> ParitySample:
        """The verdict's pair as a training sample."""
        return ParitySample(
            annotation_id=self.annotation_id,
            image_id=self.image_id,
            uri=self.uri,
            question=self.question or "",
            answer=self.answer or "",
            student_answer=self.student_answer or "",
            metadata=self.metadata,
            num_prompt_tokens=self.num_prompt_tokens,
            content_sha256=self.content_sha256,
        )


@dataclass(frozen=True)
class ParitySample:
    """A training sample. In D_PI, the teacher's two answers agree, and the student's answer disagrees."""

    annotation_id: str
    image_id: str
    uri: str
    question: str
    answer: str
    student_answer: str
    metadata: str | None = None
    num_prompt_tokens: int = 0
    content_sha256: str | None = None
    """The digest of the file that the teacher saw; None for a sample of a labelled set."""


@dataclass(frozen=True)
class EpochCounts:
    """The numbers of samples in a student's training."""

    num_chosen: int
    """Samples of the arm (D_PI for the arm `parity`), including those that are held out."""
    num_mixed_in: int
    """Samples added for replay and balance."""
    num_held_out: int
    """Samples kept out of training to measure the loss."""
    num_retained: int
    """Pairs kept out of training to measure forgetting."""
    num_too_long: int
    """Samples left out because they are longer than `level.max_tokens`. They are not truncated, because that would cut
    image tokens."""
    num_samples: int
    """Samples that the student is trained on."""
    num_with_special_token: int = 0
    """Samples left out because their question contains a special token of the student."""


@dataclass(frozen=True)
class LabelledQuestion:
    """A question of a labelled set."""

    question_id: str
    image_id: str
    uri: str
    question: str
    answers: list[str]
    family: str
    answer_type: str | None = None
    """The benchmark's name for the kind of answer, such as `yes/no` or `OPEN`."""
    split: str = ""
    """The part of the benchmark, if its parts are reported separately: `human` or `augmented` in ChartQA, the language
    in SLAKE."""


@dataclass(frozen=True)
class Prediction:
    """A model's answer to a labelled question."""

    question_id: str
    image_id: str
    uri: str
    question: str
    answers: list[str]
    family: str
    state: str
    """`kept` if the model replied; `dropped` or `failed` if it could not."""
    reason: str | None = None
    detail: str | None = None
    prediction: str | None = None
    """The model's reply; None if it could not reply. A missing reply is scored as a wrong answer."""
    finish_reason: str | None = None
    """`length` if the token limit cut off the reply; such a reply is scored like any other."""
    answer_type: str | None = None
    split: str = ""


@dataclass(frozen=True)
class Outcome:
    """The columns with the result of the work on an image, in datasets of annotations, verdicts and predictions."""

    state: str
    reason: str | None


class HasOutcome(Protocol):
    """A row with the result of the work on its image: a state and, if it was dropped or failed, a reason."""

    @property
    def image_id(self) -> str: ...

    @property
    def state(self) -> str: ...

    @property
    def reason(self) -> str | None: ...


Row = ImageRef | Annotation | Verdict | ParitySample | LabelledQuestion | Prediction
RowT = TypeVar("RowT", ImageRef, Annotation, Verdict, ParitySample, LabelledQuestion, Prediction)
T = TypeVar("T")
OutcomeT = TypeVar("OutcomeT", Annotation, Verdict, Prediction)
OfModelT = TypeVar("OfModelT", bound=HasOutcome)


@dataclass(frozen=True)
class OfModel(Generic[OfModelT]):
    """A row and the model that made it, for a pass in which several models answer."""

    model: str
    row: OfModelT

    @property
    def image_id(self) -> str:
        return self.row.image_id

    @property
    def state(self) -> str:
        return self.row.state

    @property
    def reason(self) -> str | None:
        return self.row.reason


_DETAIL = "detail"
"""The column with the messages of errors, which may quote a URL."""
_ARROW = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_(), list[str]: pa.list_(pa.string())}


def arrow_schema(row_type: type) -> pa.Schema:
    """Return the Arrow schema of a row type. A field is nullable if its annotation allows None."""
    fields = []
    for name, hint in get_type_hints(row_type).items():
        nullable = get_origin(hint) is types.UnionType
        inner = next(arg for arg in get_args(hint) if arg is not types.NoneType) if nullable else hint
        fields.append(pa.field(name, _ARROW[inner], nullable=nullable))
    return pa.schema(fields)


def to_table(rows: Sequence[RowT], row_type: type[RowT]) -> pa.Table:
    """Return rows of one type as an Arrow table with exactly that type's columns."""
    schema = arrow_schema(row_type)
    columns = [_column([getattr(row, field.name) for row in rows], field) for field in schema]
    return pa.table(columns, schema=schema)


def _column(values: list[Any], field: pa.Field) -> pa.Array:
    if field.name == _DETAIL:
        values = [None if value is None else without_secrets(value) for value in values]
    try:
        return pa.array(values, field.type)
    except UnicodeEncodeError:
        return pa.array([_readable(value) for value in values], field.type)


def _readable(value: Any) -> Any:
    if isinstance(value, list):
        return [_readable(item) for item in value]
    return readable(value) if isinstance(value, str) else value


def from_table(table: pa.Table, row_type: type[T]) -> list[T]:
    """Convert a table to rows of a dataclass, the inverse of `to_table`. Raises ValueError as `checked_table` does."""
    columns = (column.to_pylist() for column in checked_table(table, row_type).columns)
    return [row_type(*values) for values in zip(*columns, strict=True)]


def checked_table(table: pa.Table, row_type: type) -> pa.Table:
    """Return the table with all columns of a row type. Missing columns that may be None are added, filled with None.

    An earlier version of mpa_ray may have written the table without these columns.

    Raises:
        ValueError: the schema of the table differs from that of the row type in any other way.
    """
    expected = arrow_schema(row_type)
    for index, field in enumerate(expected):
        if field.nullable and field.name not in table.schema.names:
            table = table.add_column(index, field, pa.nulls(table.num_rows, field.type))
    if not table.schema.equals(expected):
        raise ValueError(f"not {row_type.__name__} rows: columns {table.schema.names}, expected {expected.names}")
    return table
