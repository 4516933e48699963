"""The rows between the operators of a graph. Each row is one whole shard: its name and its pickled content."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pyarrow as pa

from mpa_ray.errors import AccessLost, ConfigError, RunError, Unfinished
from mpa_ray.errors.remedies import Remedy, what_continues
from mpa_ray.observability.last_words import in_words
from mpa_ray.observability.usage import Usage
from mpa_ray.pipeline.pass_spec import ShardDone, ShardLeft
from mpa_ray.run.redo import ShardPlan
from mpa_ray.stages.image_work import ImageWork

T = TypeVar("T")


@dataclass(frozen=True)
class Failure:
    """The reason why a shard ends the pass."""

    problem: str
    may_pass: bool = False
    """Whether a later run of the command may succeed, for example after space is freed on a full disk."""
    ends_command: ConfigError | AccessLost | None = None
    """The error itself, if no other pass of the command can succeed."""
    remedy: Remedy | None = None
    """What the user must do to continue the run; None if the text of `problem` decides."""

    @classmethod
    def of(cls, error: Exception) -> Failure:
        """The failure that an error causes."""
        if isinstance(error, ConfigError):
            return cls(str(error), ends_command=error)
        if isinstance(error, RunError):
            ends_command = error if isinstance(error, AccessLost) else None
            is_unfinished = isinstance(error, Unfinished)
            return cls(str(error), is_unfinished, ends_command, what_continues(error))
        remedy = what_continues(error)
        return cls(in_words(error), remedy.may_pass, remedy=remedy)

    def in_words(self) -> str:
        """The problem and the remedy."""
        remedy = what_continues(self.problem) if self.remedy is None else self.remedy
        return f"{self.problem.rstrip('.')}. {remedy}".rstrip()


@dataclass(frozen=True)
class FetchedShard:
    """A shard whose images have been read."""

    shard: str
    images: list[ImageWork[Any]] = field(default_factory=list)
    """The images to visit."""
    usage: Usage = field(default_factory=Usage)
    plan: ShardPlan = field(default_factory=ShardPlan)
    order: tuple[str, ...] = ()
    """The ids of all images of the shard, in order, if the shard is redone; otherwise empty."""
    num_unread: int = 0
    """The number of images that become failed rows although the reason why they were not read may be temporary."""
    failure: Failure | None = None
    left: ShardLeft | None = None


@dataclass(frozen=True)
class VisitedShard:
    """A shard whose images a stage has visited."""

    fetched: FetchedShard
    """The shard as it was fetched, without its images."""
    num_images: int = 0
    rows: list[Any] = field(default_factory=list)
    visit_s: float = 0.0
    usage: Usage = field(default_factory=Usage)
    failure: Failure | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    """The versions of the engine's libraries."""

    @property
    def shard(self) -> str:
        return self.fetched.shard


@dataclass(frozen=True)
class ShardFailed:
    """A shard whose failure ends the pass."""

    shard: str
    failure: Failure


Result = ShardDone | ShardLeft | ShardFailed
"""A row at the end of the graph."""


def encode(value: FetchedShard | VisitedShard | Result) -> dict[str, Any]:
    """Make a row for Ray Data. The value is pickled, since Ray Data would look for an Arrow type for every field."""
    return {"shard": value.shard, "content": pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)}


def decode(row: dict[str, Any], kind: type[T]) -> T:
    """The inverse of `encode`."""
    value = pickle.loads(row["content"])
    assert isinstance(value, kind), f"expected a {kind.__name__}, got a {type(value).__name__}"
    return value


def decode_result(row: dict[str, Any]) -> Result:
    """Read a row at the end of the graph."""
    result: Result = pickle.loads(row["content"])
    return result


def decode_batch(batch: pa.Table, kind: type[T]) -> T:
    """Read the only row of a batch, without copying its images first."""
    return decode({"content": batch["content"][0].as_buffer()}, kind)


def encode_batch(value: VisitedShard) -> pa.Table:
    """Make a batch of one row."""
    return pa.Table.from_pylist([encode(value)])
