"""What flows between the stages: one frozen dataclass for each kind of row, and the Arrow schema derived from it."""

from __future__ import annotations

import types
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Generic, Protocol, TypeVar, get_args, get_origin, get_type_hints

import pyarrow as pa


class State(StrEnum):
    """Where a row ended."""

    KEPT = "kept"
    DROPPED = "dropped"
    FAILED = "failed"


class Reason(StrEnum):
    """Why a row was dropped or failed; the parser's reasons (`ReplyError`) stand beside these."""

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
    TOO_FEW_BYTES = "too_few_bytes"
    TOO_MANY_BYTES = "too_many_bytes"
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
    """An image of the corpus, not yet read."""

    image_id: str
    """Stable and unique in the run: the path below the source's root; in a container the container's and a number."""
    uri: str
    """A file, an object, or a part of one: see `mpa_ray.corpus.locator`."""
    num_bytes: int | None = None
    """None where listing the source does not tell."""
    metadata: str | None = None
    """The columns of `source.metadata` as a JSON object."""


@dataclass(frozen=True)
class Annotation:
    """A row of D_PA: what became of one image at the teacher. Every image has at least one."""

    annotation_id: str
    image_id: str
    uri: str
    state: str
    """`kept` (a pair with a second answer), `dropped` or `failed`."""
    reason: str | None = None
    detail: str | None = None
    attempts: int = 1
    """How often the image's shard was begun, or for one that kills engines the image itself."""
    metadata: str | None = None
    num_bytes: int | None = None
    content_sha256: str | None = None
    """Of the file's bytes, as is their number; None where it was not read."""
    duplicate_of: str | None = None
    """The image, earlier in the corpus, with the same bytes."""
    question: str | None = None
    answer: str | None = None
    second_answer: str | None = None
    """The teacher's answer to its own question, asked afresh; of several the one given most often."""
    second_answer_share: float | None = None
    """Of the answers drawn, how many were this one."""
    reply: str | None = None
    """What the teacher wrote, as it was."""
    finish_reason: str | None = None
    second_finish_reason: str | None = None
    mean_logprob: float | None = None
    """Mean log-probability of the reply's tokens (natural logarithm)."""
    second_mean_logprob: float | None = None
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0
    num_second_prompt_tokens: int = 0
    """Of all second answers to this question together, as everything about the second pass below."""
    num_second_cached_tokens: int = 0
    num_second_output_tokens: int = 0
    num_uncached_image_tokens: int = 0
    """Image tokens that the second pass had to compute again; 0 when the shared preamble works."""
    first_pass_s: float = 0.0
    second_pass_s: float = 0.0


@dataclass(frozen=True)
class Verdict:
    """What one student's answer makes of one annotation."""

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
    """None where the student was not asked."""
    finish_reason: str | None = None
    mean_logprob: float | None = None
    num_prompt_tokens: int = 0
    """Of the student's prompt with its image; leveling sorts by it."""

    @property
    def cell(self) -> str:
        """Who agrees with the teacher's answer, as in `teacher_yes_student_no`; `not_judged` without two answers."""
        if self.teacher_agrees is None:
            return "not_judged"
        student = {True: "yes", False: "no", None: "not_asked"}[self.student_agrees]
        return f"teacher_{'yes' if self.teacher_agrees else 'no'}_student_{student}"

    def sample(self) -> ParitySample:
        """Its pair as training takes it."""
        pair = (self.question or "", self.answer or "", self.student_answer or "")
        return ParitySample(self.annotation_id, self.image_id, self.uri, *pair, self.metadata, self.num_prompt_tokens)


@dataclass(frozen=True)
class ParitySample:
    """A row of D_PI: the teacher agrees with itself on it and the student does not."""

    annotation_id: str
    image_id: str
    uri: str
    question: str
    answer: str
    student_answer: str
    metadata: str | None = None
    num_prompt_tokens: int = 0


@dataclass(frozen=True)
class EpochCounts:
    """How many samples of each kind a student's training has."""

    num_chosen: int
    """The arm's own, before any are held out: of arm `parity`, D_PI."""
    num_mixed_in: int
    num_held_out: int
    num_retained: int
    num_too_long: int
    """Left out, since image tokens must not be cut."""
    num_samples: int
    """That are trained on."""


@dataclass(frozen=True)
class LabelledQuestion:
    """A question of a labelled set, for evaluation only."""

    question_id: str
    image_id: str
    uri: str
    question: str
    answers: list[str]
    family: str
    answer_type: str | None = None
    """As the benchmark names it, such as `yes/no` or `OPEN`."""
    split: str = ""
    """A part that the benchmark reports by itself: ChartQA's `human` and `augmented`, SLAKE's languages."""


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
    """`kept` where the model replied, `dropped` or `failed` where it could not."""
    reason: str | None = None
    detail: str | None = None
    prediction: str | None = None
    """None where there is no reply; it counts as wrong."""
    finish_reason: str | None = None
    """`length` where the token limit cut the reply, which is scored all the same."""
    answer_type: str | None = None
    split: str = ""


class HasOutcome(Protocol):
    """A row that says what became of its image."""

    @property
    def image_id(self) -> str: ...

    @property
    def state(self) -> str: ...

    @property
    def reason(self) -> str | None: ...


Row = ImageRef | Annotation | Verdict | ParitySample | LabelledQuestion | Prediction
RowT = TypeVar("RowT", ImageRef, Annotation, Verdict, ParitySample, LabelledQuestion, Prediction)
OutcomeT = TypeVar("OutcomeT", Annotation, Verdict, Prediction)
OfModelT = TypeVar("OfModelT", bound=HasOutcome)


@dataclass(frozen=True)
class OfModel(Generic[OfModelT]):
    """A row of one of several models that answer in the same pass."""

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


_ARROW = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_(), list[str]: pa.list_(pa.string())}


def arrow_schema(row_type: type) -> pa.Schema:
    """The Arrow schema of a row type; a field is nullable where its annotation allows None."""
    fields = []
    for name, hint in get_type_hints(row_type).items():
        nullable = get_origin(hint) is types.UnionType
        inner = next(a for a in get_args(hint) if a is not type(None)) if nullable else hint
        fields.append(pa.field(name, _ARROW[inner], nullable=nullable))
    return pa.schema(fields)


def to_table(rows: Sequence[RowT], row_type: type[RowT]) -> pa.Table:
    """Rows of one type as an Arrow table with exactly that type's columns."""
    schema = arrow_schema(row_type)
    return pa.table([pa.array([getattr(r, f.name) for r in rows], f.type) for f in schema], schema=schema)


def from_table(table: pa.Table, row_type: type[RowT]) -> list[RowT]:
    """The inverse of `to_table`.

    Raises:
        ValueError: the table's schema is not the row type's.
    """
    expected = arrow_schema(row_type)
    if not table.schema.equals(expected):
        raise ValueError(f"not {row_type.__name__} rows: columns {table.schema.names}, expected {expected.names}")
    rows: list[dict[str, Any]] = table.to_pylist()
    return [row_type(**row) for row in rows]
