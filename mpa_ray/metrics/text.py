"""Equality and containment of texts."""

from __future__ import annotations

import re
from collections.abc import Sequence


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1 if the prediction equals an answer after strip and lower case, otherwise 0."""
    predicted = prediction.strip().lower()
    return float(any(predicted == answer.strip().lower() for answer in answers))


def containment(prediction: str, answers: Sequence[str]) -> float:
    """1 if the first answer occurs in the prediction, ignoring case, white space and all characters outside `\\w`.

    The paper's release calls this VQA accuracy. It finds "no" in "Nokia". An answer that consists only of punctuation
    is found in every text.
    """
    return float(squeezed(answers[0]) in squeezed(prediction)) if answers else 0.0


def squeezed(text: str) -> str:
    """Lower case, without the characters outside `\\w`."""
    return re.sub(r"\W", "", text.lower())
