"""Shuffle the samples of an epoch, mostly on disk."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path

from mpa_ray.leveling.sampling import sampling_key
from mpa_ray.records import ParitySample

_NUM_BUCKETS = 64


def in_seeded_order(samples: Iterable[ParitySample], seed: int, scratch: Path) -> Iterator[ParitySample]:
    """Shuffle samples by a hash of seed and id, so that the order of the input does not matter.

    About 1/64 of the samples are in memory at a time; the others are in files below `scratch`.
    """
    buckets = [scratch / f"{number}" for number in range(_NUM_BUCKETS)]
    with ExitStack() as stack:
        files = [stack.enter_context(bucket.open("wb")) for bucket in buckets]
        for sample in samples:
            key = sampling_key(sample.annotation_id, seed, "order")
            pickle.dump((key, sample), files[key * _NUM_BUCKETS >> 64])
    for bucket in buckets:
        entries = []
        with bucket.open("rb") as file:
            while file.peek(1):
                entries.append(pickle.load(file))
        yield from (sample for _, sample in sorted(entries, key=lambda entry: (entry[0], entry[1].annotation_id)))
