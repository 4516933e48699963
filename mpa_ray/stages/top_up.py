"""Pairs that the student already answers, taken into training beside D_PI. Pure functions."""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from mpa_ray.config import LevelConfig
from mpa_ray.metrics.answer_types import answer_type
from mpa_ray.records import ParitySample, Reason, Verdict
from mpa_ray.stages.judge import sample_of


def further_samples(
    parity: Sequence[ParitySample], verdicts: Callable[[], Iterable[Verdict]], level: LevelConfig
) -> list[ParitySample]:
    """What `level.balance` and `level.replay_share` add to D_PI, drawn by the seed; no pair twice.

    Args:
        parity: D_PI.
        verdicts: Goes through the student's verdicts anew each time it is called.
        level: How many, and the seed.
    """
    found = _balancing(parity, verdicts, level.seed) if level.balance else []
    num_replayed = round(level.replay_share * len(parity))
    if num_replayed:
        taken = {sample.annotation_id for sample in found}
        known = (v for v in verdicts() if v.reason == Reason.STUDENT_CORRECT and v.annotation_id not in taken)
        found += [sample_of(v) for v in heapq.nsmallest(num_replayed, known, key=lambda v: _lot(v, level.seed))]
    return found


def shortfall(annotated: Mapping[str, int], parity: Mapping[str, int]) -> dict[str, int]:
    """How many answers of each type D_PI lacks to hold as many as D_PA's shares would give a set of its size."""
    num_annotated, num_parity = sum(annotated.values()), sum(parity.values())
    wanted = {kind: round(number / num_annotated * num_parity) for kind, number in annotated.items() if number}
    return {kind: number - parity.get(kind, 0) for kind, number in wanted.items() if number > parity.get(kind, 0)}


def _balancing(
    parity: Sequence[ParitySample], verdicts: Callable[[], Iterable[Verdict]], seed: int
) -> list[ParitySample]:
    annotated = Counter(answer_type(v.answer) for v in verdicts() if v.answer is not None)
    lacking = shortfall(annotated, Counter(answer_type(sample.answer) for sample in parity))
    known: dict[str, list[tuple[bytes, str, ParitySample]]] = {kind: [] for kind in lacking}
    for verdict in verdicts():
        if verdict.reason != Reason.STUDENT_CORRECT:
            continue
        kind = answer_type(verdict.answer or "")
        if kind in lacking:
            # The lots that come first, kept as a heap of the last among them: memory is D_PI's, not D_PA's.
            lot = bytes(255 - byte for byte in _lot(verdict, seed))
            entry = (lot, verdict.annotation_id, sample_of(verdict))
            (heapq.heappush if len(known[kind]) < lacking[kind] else heapq.heappushpop)(known[kind], entry)
    return [sample for kind in sorted(known) for _, _, sample in sorted(known[kind], reverse=True)]


def _lot(verdict: Verdict, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}:{verdict.annotation_id}".encode()).digest()
