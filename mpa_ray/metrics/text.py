"""Metrics on text alone: equality and containment."""

from __future__ import annotations

import re
from collections.abc import Sequence


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1 where the prediction equals an answer after strip and lower case, else 0."""
    told = prediction.strip().lower()
    return float(any(told == answer.strip().lower() for answer in answers))


def containment(prediction: str, answers: Sequence[str]) -> float:
    """1 where the first answer occurs in the prediction, both without case, white space and everything outside `\\w`.

    What the paper's release calls VQA accuracy. "no" is found in "Nokia"; an answer of nothing but punctuation is
    found in everything.
    """
    return float(squeezed(answers[0]) in squeezed(prediction)) if answers else 0.0


def squeezed(text: str) -> str:
    return re.sub(r"\W", "", text.lower())
