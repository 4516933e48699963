"""Pairs that the student already answers: some are trained on beside D_PI, some show what is kept. Pure functions."""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mpa_ray.config import LevelConfig
from mpa_ray.metrics.answer_types import TYPES, answer_type
from mpa_ray.records import Reason, Verdict

Role = Literal["trained", "retained"]

_RETAINED_SHARE = 0.1
"""Of the known pairs at most so many are kept from training to show how many are still answered."""


@dataclass(frozen=True)
class Draw:
    """Which known pairs are drawn for what: those whose lots, equally likely numbers of 64 bits, are low enough."""

    seed: int
    retained: int
    """The last lot that is kept from training; -1 for none."""
    balancing: Mapping[str, int]
    """By type of answer, of the lots behind those, the last that is trained on for balance."""
    replayed: int
    """Of what is left, the last that is replayed."""

    def role(self, verdict: Verdict) -> Role | None:
        """What becomes of a pair beside D_PI; None for most."""
        if verdict.reason != Reason.STUDENT_CORRECT:
            return None
        lot = sampling_key(verdict.annotation_id, self.seed)
        if lot <= self.retained:
            return "retained"
        balances = lot <= self.balancing.get(answer_type(verdict.answer or ""), -1)
        return "trained" if balances or lot <= self.replayed else None


def draw(parity_types: Mapping[str, int], verdicts: Iterable[Verdict], level: LevelConfig) -> Draw:
    """Draw for `level.balance`, `level.replay_share` and `level.retained_samples`.

    Holds some 20 bytes for each known pair. The order of the verdicts does not matter.

    Args:
        parity_types: How many answers of each type D_PI holds.
        verdicts: Of the student, on all of D_PA.
        level: How many, and the seed.
    """
    annotated: Counter[str] = Counter()
    lots, types = array("Q"), array("B")
    codes = {name: code for code, name in enumerate(TYPES)}
    for verdict in verdicts:
        if verdict.answer is None:
            continue
        kind = answer_type(verdict.answer)
        annotated[kind] += 1
        if verdict.reason == Reason.STUDENT_CORRECT:
            lots.append(sampling_key(verdict.annotation_id, level.seed))
            types.append(codes[kind])
    known, of_type = np.array(lots, dtype=np.uint64), np.array(types, dtype=np.uint8)
    # The same ones whatever else is drawn, so that all of a student's trainings are watched alike.
    retained = last_of_lowest(known, min(level.retained_samples, int(_RETAINED_SHARE * len(known))))
    rest = known > np.uint64(max(retained, 0))
    known, of_type = known[rest], of_type[rest]
    balancing = {}
    if level.balance:
        wanted = shortfall(annotated, parity_types)
        balancing = {kind: last_of_lowest(known[of_type == codes[kind]], number) for kind, number in wanted.items()}
        for kind, last in balancing.items():
            rest = (of_type != codes[kind]) | (known > np.uint64(max(last, 0)))
            known, of_type = known[rest], of_type[rest]
    replayed = last_of_lowest(known, round(level.replay_share * sum(parity_types.values())))
    return Draw(level.seed, retained, balancing, replayed)


def sampling_key(annotation_id: str, seed: int, purpose: str = "known") -> int:
    """A number of 64 bits, drawn anew for every seed and purpose."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{purpose}:{annotation_id}".encode()).digest()[:8])


def shortfall(annotated: Mapping[str, int], parity: Mapping[str, int]) -> dict[str, int]:
    """How many answers of each type D_PI lacks to hold as many as D_PA's shares would give a set of its size."""
    num_annotated, num_parity = sum(annotated.values()), sum(parity.values())
    wanted = {kind: round(number / num_annotated * num_parity) for kind, number in annotated.items() if number}
    return {kind: number - parity.get(kind, 0) for kind, number in wanted.items() if number > parity.get(kind, 0)}


def last_of_lowest(lots: NDArray[np.uint64], number: int) -> int:
    """The last of the `number` lowest lots; -1 for none."""
    if number <= 0 or not len(lots):
        return -1
    number = min(number, len(lots))
    return int(np.partition(lots, number - 1)[number - 1])
