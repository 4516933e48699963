"""Choose rows at random, by a hash of the seed and the row's id. The order of the rows does not matter."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from mpa_ray.records import ParitySample


def sampling_key(annotation_id: str, seed: int, purpose: str) -> int:
    """A uniform 64-bit number, independent for every seed and purpose."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{purpose}:{annotation_id}".encode()).digest()[:8])


def key_threshold(keys: NDArray[np.uint64], num: int) -> int:
    """The largest of the `num` lowest keys: `key <= threshold` selects exactly these. -1 if there are none."""
    if num <= 0 or not len(keys):
        return -1
    num = min(num, len(keys))
    return int(np.partition(keys, num - 1)[num - 1])


def sample_of(samples: Iterable[ParitySample], num: int, seed: int, purpose: str) -> list[ParitySample]:
    """The `num` samples with the lowest keys; all of them if there are fewer."""
    return heapq.nsmallest(num, samples, key=lambda sample: sampling_key(sample.annotation_id, seed, purpose))
