"""Settings of the Parity Identifier and its matchers."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from mpa_ray.config.settings import Settings


class PlainMatch(Settings):
    """A matcher without settings."""

    kind: Literal["exact", "containment", "vqa_normalized"]


class NumericMatch(Settings):
    """Compare numbers of the same unit with a tolerance, and other text exactly."""

    kind: Literal["numeric"]
    tolerance: float = Field(0.05, ge=0)
    """Two numbers agree if they differ by at most this share of the reference."""


class AnlsMatch(Settings):
    """Compare text by its spelling (average normalised Levenshtein similarity)."""

    kind: Literal["anls"]
    threshold: float = Field(0.5, gt=0, le=1)
    """Two texts agree if their similarity (1 - normalised edit distance) is at least this number."""


class AnyOfMatch(Settings):
    """Two answers agree if they agree according to at least one of several matchers."""

    kind: Literal["any_of"]
    of: tuple[MatcherConfig, ...] = Field(min_length=1)
    """The matchers."""


def _from_name(value: Any) -> Any:
    return {"kind": value} if isinstance(value, str) else value


MatcherConfig = Annotated[
    PlainMatch | NumericMatch | AnlsMatch | AnyOfMatch, Field(discriminator="kind"), BeforeValidator(_from_name)
]
# `AnyOfMatch.of` refers to `MatcherConfig`, which does not exist yet when the class is created.
AnyOfMatch.model_rebuild()


class IdentifyConfig(Settings):
    """The Parity Identifier: finds pairs that the teacher answers consistently and the student does not."""

    matcher: MatcherConfig | None = None
    """The matcher, which decides when two answers agree: `exact`, `containment` (as in the paper's released code),
    `vqa_normalized`, `numeric`, `anls` or `any_of`. Write the matcher's name, or a mapping with `kind` and the
    matcher's settings. None uses the task's matcher."""
    ask_where_teacher_disagrees: bool = False
    """Whether the student also answers the questions on which the teacher's two answers differ. The report then counts
    how often the student agrees with the teacher's first answer to these questions. D_PI stays the same."""
