"""ChartQA's relaxed accuracy, as pix2struct computes it; the benchmark's own scorer has no tolerance."""

from __future__ import annotations

from collections.abc import Sequence

TOLERANCE = 0.05
"""Largest distance from the answer as a share of it."""


def relaxed_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """1 where the prediction is within 5 % of a number, or is equal to other text without case, else 0.

    A year is a number like any other, "50%" is 0.5, and a target of 0 wants its own text.
    """
    return float(any(_agrees(prediction, answer) for answer in answers))


def number(text: str) -> float | None:
    """What Python reads as a float, a percentage as its hundredth part; None for other text."""
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def _agrees(prediction: str, answer: str) -> bool:
    told, wanted = number(prediction), number(answer)
    if told is not None and wanted:
        return abs(told - wanted) / abs(wanted) <= TOLERANCE
    return prediction.lower() == answer.lower()
