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

    The paper's release calls this VQA accuracy. For example, the answer "no" occurs in the prediction "Nokia". An
    answer that consists only of punctuation occurs in every prediction.
    """
    return float(squeezed(answers[0]) in squeezed(prediction)) if answers else 0.0


def squeezed(text: str) -> str:
    """Return a text in lower case, without the characters outside `\\w`."""
    return re.sub(r"\W", "", text.lower())
