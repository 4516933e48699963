"""Average Normalised Levenshtein Similarity (ANLS), as the script of the Robust Reading Competition computes it."""

from __future__ import annotations

from collections.abc import Sequence

from rapidfuzz.distance import Levenshtein

THRESHOLD = 0.5
"""A similarity below this threshold scores 0."""


def similarity(prediction: str, answer: str) -> float:
    """Return 1 - edit distance / length, both counted in code points. Case and the amount of white space are ignored.

    The length is that of the longer text before white space is collapsed. As in the script, surplus white space
    therefore raises the similarity of an imperfect match.
    """
    length = max(len(answer.upper()), len(prediction.upper()))
    if not length:
        return 1.0
    return 1 - Levenshtein.distance(_spaced(answer), _spaced(prediction)) / length


def anls(prediction: str, answers: Sequence[str], threshold: float = THRESHOLD) -> float:
    """One question's score: the similarity to the nearest answer, or 0 if this similarity is below the threshold."""
    best = max((similarity(prediction, answer) for answer in answers), default=0.0)
    return best if best >= threshold else 0.0


def _spaced(text: str) -> str:
    return " ".join(text.strip().lower().split())
