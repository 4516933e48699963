"""Select known pairs (those that the student already answers) to train on, and others to measure forgetting."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mpa_ray.config import LevelConfig
from mpa_ray.leveling.sampling import key_threshold, sampling_key
from mpa_ray.metrics.answer_types import TYPES, answer_type
from mpa_ray.records import Reason, Verdict

Role = Literal["trained", "retained"]

_RETAINED_SHARE = 0.1
"""At most this share of the known pairs is retained."""


@dataclass(frozen=True)
class KnownPairSelection:
    """Selects the known pairs whose sampling keys are at most a threshold. A threshold of -1 selects none."""

    seed: int
    retained: int
    """The threshold for pairs that are kept out of training, to measure forgetting."""
    balancing: Mapping[str, int]
    """The thresholds, by type of answer, for pairs that are added to the training to balance the types."""
    replayed: int
    """The threshold for pairs of any type that are trained on because of `level.replay_share`."""

    def role(self, verdict: Verdict) -> Role | None:
        """What the pair is used for; None if the pair is not known or not selected."""
        if not _is_known(verdict):
            return None
        key = _key(verdict, self.seed)
        if key <= self.retained:
            return "retained"
        threshold = max(self.replayed, self.balancing.get(answer_type(verdict.answer or ""), -1))
        return "trained" if key <= threshold else None


def select_known_pairs(
    parity_types: Mapping[str, int], verdicts: Iterable[Verdict], level: LevelConfig
) -> KnownPairSelection:
    """Select pairs for `level.retained_samples`, `level.balance` and `level.replay_share`, in this order.

    The selection takes about 20 bytes of memory for each known pair. The order of the verdicts does not matter.

    Args:
        parity_types: The number of answers of each type in D_PI.
        verdicts: The student's verdicts on all of D_PA.
        level: How many pairs to select, and the seed.
    """
    annotated: Counter[str] = Counter()
    known_keys, known_types = array("Q"), array("B")
    codes = {name: code for code, name in enumerate(TYPES)}
    for verdict in verdicts:
        if verdict.answer is None:
            continue
        kind = answer_type(verdict.answer)
        annotated[kind] += 1
        if _is_known(verdict):
            known_keys.append(_key(verdict, level.seed))
            known_types.append(codes[kind])
    keys, types = np.array(known_keys, dtype=np.uint64), np.array(known_types, dtype=np.uint8)
    # Retained pairs are selected first. They do not depend on the other settings, so they are the same in all arms.
    retained = key_threshold(keys, min(level.retained_samples, int(_RETAINED_SHARE * len(keys))))
    remaining = keys > np.uint64(max(retained, 0))
    keys, types = keys[remaining], types[remaining]
    balancing = {}
    if level.balance:
        for kind, num in shortfall(annotated, parity_types).items():
            balancing[kind] = key_threshold(keys[types == codes[kind]], num)
        for kind, threshold in balancing.items():
            remaining = (types != codes[kind]) | (keys > np.uint64(max(threshold, 0)))
            keys, types = keys[remaining], types[remaining]
    replayed = key_threshold(keys, round(level.replay_share * sum(parity_types.values())))
    return KnownPairSelection(level.seed, retained, balancing, replayed)


def shortfall(annotated: Mapping[str, int], parity: Mapping[str, int]) -> dict[str, int]:
    """How many more answers of each type D_PI would have if it kept its size but had D_PA's shares of the types."""
    num_annotated, num_parity = sum(annotated.values()), sum(parity.values())
    balanced = {kind: round(num / num_annotated * num_parity) for kind, num in annotated.items() if num}
    return {kind: num - parity.get(kind, 0) for kind, num in balanced.items() if num > parity.get(kind, 0)}


def _is_known(verdict: Verdict) -> bool:
    return verdict.reason == Reason.STUDENT_CORRECT


def _key(verdict: Verdict, seed: int) -> int:
    return sampling_key(verdict.annotation_id, seed, "known")
