"""The rows between the operators of a graph. Each is one whole shard: its name, and its content pickled."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pyarrow as pa

from mpa_ray.observability.usage import Usage
from mpa_ray.pipeline.pass_spec import ShardDone
from mpa_ray.stages.image_work import ImageWork

T = TypeVar("T")


@dataclass(frozen=True)
class FetchedShard:
    """A shard whose images have been read."""

    shard: str
    images: list[ImageWork[Any]]
    usage: Usage
    failure: str = ""
    """Why the shard could not be read; empty if it was read."""


@dataclass(frozen=True)
class VisitedShard:
    """A shard whose images a stage has visited."""

    shard: str
    num_images: int
    rows: list[Any] = field(default_factory=list)
    visit_s: float = 0.0
    usage: Usage = field(default_factory=Usage)
    failure: str = ""
    """Why the shard could not be visited; empty if it was visited."""


@dataclass(frozen=True)
class ShardFailed:
    """A shard whose failure ends the pass."""

    shard: str
    failure: str
    may_pass: bool = False
    """Whether the cause may be temporary, such as a full disk."""


def encode(value: FetchedShard | VisitedShard | ShardDone | ShardFailed) -> dict[str, Any]:
    """Make a row for Ray Data. It is pickled here: Ray Data would try to find an Arrow type for every field."""
    return {"shard": value.shard, "content": pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)}


def decode(row: dict[str, Any], kind: type[T]) -> T:
    """The inverse of `encode`."""
    value = pickle.loads(row["content"])
    assert isinstance(value, kind), f"expected a {kind.__name__}, got a {type(value).__name__}"
    return value


def decode_result(row: dict[str, Any]) -> ShardDone | ShardFailed:
    """Read a row at the end of the graph."""
    result: ShardDone | ShardFailed = pickle.loads(row["content"])
    return result


def decode_batch(batch: pa.Table, kind: type[T]) -> T:
    """Read the only row of a batch, without copying its images first."""
    return decode({"content": batch["content"][0].as_buffer()}, kind)


def encode_batch(value: VisitedShard) -> pa.Table:
    """Make a batch of one row."""
    return pa.Table.from_pylist([encode(value)])
