"""The samples of each arm: D_PI, or a set to compare it with."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from mpa_ray.config import Arm
from mpa_ray.leveling.sampling import key_threshold, sampling_key
from mpa_ray.records import ParitySample, Verdict

Samples = Callable[[], Iterable[ParitySample]]


@dataclass(frozen=True)
class SampleSources:
    """The datasets that samples come from. Each field is a function; every call reads its dataset from the start."""

    parity: Samples
    """D_PI."""
    verdicts: Callable[[], Iterable[Verdict]]
    """The student's verdicts on all of D_PA."""
    labels: Samples | None = None
    """The labelled set that arm `labels` trains on."""
    replayed: Samples | None = None
    """A labelled set to mix in instead of known pairs."""
    held_out: Samples | None = None
    """A labelled set to hold out instead of a share of the arm's samples."""


def samples_of(
    arm: Arm, sources: SampleSources, seed: int, is_retained: Callable[[Verdict], bool] = lambda _: False
) -> Samples:
    """Return a function that yields an arm's own samples. Every call reads the samples again.

    Args:
        arm: The arm.
        sources: The datasets that its samples come from.
        seed: Chooses the samples of arm `random`.
        is_retained: Returns whether a pair is kept out of training in all arms.

    Raises:
        ValueError: the arm is `labels`, and there is no labelled set.
    """

    def judged() -> Iterator[Verdict]:
        return (v for v in sources.verdicts() if v.teacher_agrees is not None and not is_retained(v))

    def key(verdict: Verdict) -> int:
        return sampling_key(verdict.annotation_id, seed, "random")

    def random_samples() -> Iterator[ParitySample]:
        keys = np.array(array("Q", map(key, judged())), dtype=np.uint64)
        threshold = key_threshold(keys, sum(1 for _ in sources.parity()))
        return (v.sample() for v in judged() if key(v) <= threshold)

    match arm:
        case "parity":
            return sources.parity
        case "all":
            return lambda: (v.sample() for v in judged())
        case "consistent":
            return lambda: (v.sample() for v in judged() if v.teacher_agrees)
        case "random":
            return random_samples
        case "labels":
            if sources.labels is None:
                raise ValueError("arm labels has no labelled set to train on")
            return sources.labels
