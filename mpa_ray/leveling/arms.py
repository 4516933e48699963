"""What a student is trained on: D_PI, or a set to compare it with."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from mpa_ray.config import Arm
from mpa_ray.leveling.replay import last_of_lowest, sampling_key
from mpa_ray.records import ParitySample, Verdict

Samples = Callable[[], Iterable[ParitySample]]


def samples_of(
    arm: Arm,
    parity: Samples,
    verdicts: Callable[[], Iterable[Verdict]],
    labels: Samples | None,
    seed: int,
    is_retained: Callable[[Verdict], bool] = lambda _: False,
) -> Samples:
    """An arm's samples, from sources that every call goes through anew.

    Args:
        arm: Its name.
        parity: D_PI.
        verdicts: On all of D_PA.
        labels: A user's labelled set.
        seed: Of the random arm.
        is_retained: Whether a pair is kept from training, in all arms.
    """

    def annotated() -> Iterator[Verdict]:
        judged = (verdict for verdict in verdicts() if verdict.teacher_agrees is not None)
        return (verdict for verdict in judged if not is_retained(verdict))

    def at_random() -> Iterator[ParitySample]:
        lots = array("Q", (sampling_key(verdict.annotation_id, seed, "random") for verdict in annotated()))
        last = last_of_lowest(np.array(lots, dtype=np.uint64), sum(1 for _ in parity()))
        return (v.sample() for v in annotated() if sampling_key(v.annotation_id, seed, "random") <= last)

    match arm:
        case "parity":
            return parity
        case "all":
            return lambda: (verdict.sample() for verdict in annotated())
        case "consistent":
            return lambda: (verdict.sample() for verdict in annotated() if verdict.teacher_agrees)
        case "random":
            return at_random
        case "labels":
            assert labels is not None
            return labels
