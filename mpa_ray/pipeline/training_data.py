"""Training steps with their images' bytes, read ahead of a training worker."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import ray
from ray.data import Dataset, TaskPoolStrategy

from mpa_ray.corpus.read import Reader
from mpa_ray.pipeline.cluster import AUXILIARY_CPUS, configure_ray_data

_ROWS_PER_TASK = 64
"""Images that one task reads, about."""
_NUM_TASKS = 4
"""Tasks of one worker at a time."""


class HasImage(Protocol):
    """A row about one image file."""

    @property
    def uri(self) -> str: ...


def steps_with_images(
    num_steps: int,
    first: int,
    steps: Callable[[int, int], Iterable[Sequence[Sequence[HasImage]]]],
    rows_per_step: int,
    reader: Reader,
) -> Dataset:
    """A worker's training steps in their order: columns `step` and `contents`, both pickled.

    The content of a file that cannot be read is empty.

    Args:
        num_steps: Steps of the epoch.
        first: The step to begin with.
        steps: Reads the steps from one up to another, each as micro-batches of rows; called where images are read.
        rows_per_step: Rows of one step, about.
        reader: Reads the images.
    """

    def fetch(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
        for step in steps(row["first"], row["last"]):
            files = reader.read([item.uri for batch in step for item in batch])
            contents = [content if isinstance(content, bytes) else b"" for content in files]
            yield {"step": pickle.dumps(step), "contents": pickle.dumps(contents)}

    configure_ray_data()
    size = max(1, _ROWS_PER_TASK // rows_per_step)
    ranges = [{"first": at, "last": min(at + size, num_steps)} for at in range(first, num_steps, size)]
    items = ray.data.from_items(ranges, override_num_blocks=max(1, len(ranges)))
    fetched = items.flat_map(fetch, num_cpus=AUXILIARY_CPUS, compute=TaskPoolStrategy(_NUM_TASKS))
    # A resumed epoch must meet the same batches.
    fetched.context.execution_options.preserve_order = True
    return fetched
