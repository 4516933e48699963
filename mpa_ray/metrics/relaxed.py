"""ChartQA's relaxed accuracy, as pix2struct computes it; the scorer in ChartQA's own repository has no tolerance."""

from __future__ import annotations

from collections.abc import Sequence

TOLERANCE = 0.05
"""The largest accepted difference from the answer, as a share of the answer."""


def relaxed_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """1 if the prediction is within 5 % of a numeric answer or equals any other answer, ignoring case; otherwise 0.

    Years are compared as other numbers are, "50%" means 0.5, and an answer of 0 is compared as text.
    """
    return float(any(_agrees(prediction, answer) for answer in answers))


def number(text: str) -> float | None:
    """The number that Python's `float` reads, divided by 100 for a percentage; None for other text."""
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def _agrees(prediction: str, answer: str) -> bool:
    predicted, expected = number(prediction), number(answer)
    if predicted is not None and expected:
        return abs(predicted - expected) / abs(expected) <= TOLERANCE
    return prediction.lower() == answer.lower()
