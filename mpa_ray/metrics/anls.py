"""Average Normalised Levenshtein Similarity, as the Robust Reading Competition's script computes it."""

from __future__ import annotations

from collections.abc import Sequence

from rapidfuzz.distance import Levenshtein

THRESHOLD = 0.5
"""A similarity below it counts as none."""


def similarity(prediction: str, answer: str) -> float:
    """1 - edit distance / length, in code points, without case and with white space made single.

    The length is that of the longer of the two as they were given, so white space around an imperfect match raises it.
    """
    length = max(len(answer.upper()), len(prediction.upper()))
    if not length:
        return 1.0
    return 1 - Levenshtein.distance(_spaced(answer), _spaced(prediction)) / length


def anls(prediction: str, answers: Sequence[str], threshold: float = THRESHOLD) -> float:
    """The similarity to the nearest answer, or 0 where that is below the threshold; of a single question."""
    best = max((similarity(prediction, answer) for answer in answers), default=0.0)
    return best if best >= threshold else 0.0


def _spaced(text: str) -> str:
    return " ".join(text.strip().lower().split())
