"""Training steps with the bytes of their images, which Ray Data reads some steps ahead of a training worker."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, TypeVar

import ray
from ray.data import Dataset, TaskPoolStrategy

from mpa_ray.corpus.read import Content, Reader
from mpa_ray.errors import TransientError
from mpa_ray.imaging.decode import ImageProblem
from mpa_ray.pipeline.cluster import configure_ray_data
from mpa_ray.pipeline.machine import AUXILIARY_CPUS
from mpa_ray.records import Reason
from mpa_ray.stages.image_work import unless_changed

_IMAGES_PER_TASK = 64
"""About how many images one task reads."""
_NUM_TASKS = 4
"""How many tasks read concurrently for one training worker."""


class HasImage(Protocol):
    """A row with one image."""

    @property
    def uri(self) -> str: ...

    @property
    def content_sha256(self) -> str | None: ...


RowT = TypeVar("RowT", bound=HasImage)


@dataclass(frozen=True)
class FetchedStep(Generic[RowT]):
    """One worker's micro-batches of a training step, with the bytes of their images."""

    batches: Sequence[Sequence[RowT]]
    contents: Sequence[Sequence[Content]]
    """The image file of every row, batch by batch. An `ImageProblem` replaces a file that cannot be read, or that has
    changed since the teacher saw it."""

    def encode(self) -> dict[str, bytes]:
        """Make a row for Ray Data. The step is pickled, since Ray Data would look for an Arrow type for every field."""
        return {"content": pickle.dumps(self, protocol=pickle.HIGHEST_PROTOCOL)}


def decode(columns: Mapping[str, Sequence[Any]]) -> FetchedStep[Any]:
    """The inverse of `FetchedStep.encode`, for a batch of one row."""
    step = pickle.loads(columns["content"][0])
    assert isinstance(step, FetchedStep), f"a {type(step).__name__} came where a FetchedStep was expected"
    return step


def steps_with_images(
    num_steps: int,
    first: int,
    steps: Callable[[int, int], Iterable[Sequence[Sequence[HasImage]]]],
    rows_per_step: int,
    reader: Reader,
) -> Dataset:
    """Make a dataset of a worker's training steps, in order. Each row is one step, and `decode` reads it.

    Args:
        num_steps: The number of steps in the epoch.
        first: The number of the step to start with; the epoch starts with step 0.
        steps: Takes two step numbers, and yields the micro-batches of each step from the first number up to, but not
            including, the second. It runs in the tasks that read the images.
        rows_per_step: About how many rows a step has on this worker.
        reader: Reads the images.
    """

    def fetch(row: dict[str, int]) -> Iterator[dict[str, bytes]]:
        for batches in steps(row["first"], row["last"]):
            yield fetched(batches, reader).encode()

    configure_ray_data()
    steps_per_task = max(1, _IMAGES_PER_TASK // rows_per_step)
    starts = range(first, num_steps, steps_per_task)
    ranges = [{"first": start, "last": min(start + steps_per_task, num_steps)} for start in starts]
    items = ray.data.from_items(ranges, override_num_blocks=max(1, len(ranges)))
    dataset = items.flat_map(fetch, num_cpus=AUXILIARY_CPUS, compute=TaskPoolStrategy(_NUM_TASKS))
    # A resumed epoch must see the same batches.
    dataset.context.execution_options.preserve_order = True
    return dataset


def fetched(batches: Sequence[Sequence[RowT]], reader: Reader) -> FetchedStep[RowT]:
    """Read the images of a step. An image that has changed since the teacher saw it is replaced by an `ImageProblem`.

    Raises:
        TransientError: an image cannot be read, for a reason that may be temporary. If training went on without it, the
            student would never see the image.
    """
    contents = read_images([row for batch in batches for row in batch], reader)
    for content in contents:
        if isinstance(content, ImageProblem) and content.reason == Reason.STORAGE:
            raise TransientError(content.detail)
    files = iter(contents)
    return FetchedStep(batches, [[_as_seen(row, next(files)) for row in batch] for batch in batches])


def read_images(rows: Sequence[HasImage], reader: Reader) -> list[Content]:
    """Read the image of each row.

    If the source has been moved, only images of the corpus are read from its new place. Rows without a digest are from
    labelled sets, whose images stay in their place.
    """
    if reader.moved is None:
        return reader.read([row.uri for row in rows])
    of_corpus = [row.content_sha256 is not None for row in rows]
    moved = [row.uri for row, is_moved in zip(rows, of_corpus, strict=True) if is_moved]
    others = [row.uri for row, is_moved in zip(rows, of_corpus, strict=True) if not is_moved]
    contents = {True: iter(reader.read(moved)), False: iter(replace(reader, moved=None).read(others))}
    return [next(contents[is_moved]) for is_moved in of_corpus]


def _as_seen(row: HasImage, content: Content) -> Content:
    return unless_changed(content, row.content_sha256) if isinstance(content, bytes) else content
