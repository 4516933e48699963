"""Settings of the Parity Identifier and its matchers."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from mpa_ray.config.settings import Settings


class PlainMatch(Settings):
    """A matcher without settings."""

    kind: Literal["exact", "containment", "vqa_normalized"]


class NumericMatch(Settings):
    """Numbers of one unit, and other text exactly."""

    kind: Literal["numeric"]
    tolerance: float = Field(0.05, ge=0)
    """Largest difference, as a share of the reference."""


class AnlsMatch(Settings):
    """Text that is written nearly alike."""

    kind: Literal["anls"]
    threshold: float = Field(0.5, gt=0, le=1)
    """Least similarity (1 - normalised edit distance)."""


class AnyOfMatch(Settings):
    """Agreement by at least one of several."""

    kind: Literal["any_of"]
    of: tuple[MatcherConfig, ...] = Field(min_length=1)


def _kind_alone(value: Any) -> Any:
    return {"kind": value} if isinstance(value, str) else value


MatcherConfig = Annotated[
    PlainMatch | NumericMatch | AnlsMatch | AnyOfMatch, Field(discriminator="kind"), BeforeValidator(_kind_alone)
]
# `AnyOfMatch.of` refers to the alias, which does not exist when the class is made.
AnyOfMatch.model_rebuild()


class IdentifyConfig(Settings):
    """The Parity Identifier."""

    matcher: MatcherConfig | None = None
    """When two answers agree: `exact`, `containment` (as the released code of the paper), `vqa_normalized`, `numeric`,
    `anls`, or `any_of` several; by name, or as a mapping with settings. None takes the task's."""
    ask_where_teacher_disagrees: bool = False
    """Also ask the student where the teacher contradicts itself: fills all four cells, changes nothing that is kept."""
