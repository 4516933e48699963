"""Score predictions, apart from making them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from mpa_ray.records import Prediction

METRIC = "exact_match"


def exact_match(prediction: str, answers: list[str]) -> float:
    """1 where the prediction equals an answer after strip and lower case, else 0 (as VLMEvalKit and Qwen-VL score)."""
    return float(prediction.strip().lower() in {answer.strip().lower() for answer in answers})


def score(predictions: Iterable[Prediction]) -> dict[str, dict[str, float]]:
    """Accuracy in [0, 1] and number of questions, overall (`all`) and by family; no prediction counts as wrong."""
    hits: dict[str, list[float]] = defaultdict(list)
    for row in predictions:
        value = 0.0 if row.prediction is None else exact_match(row.prediction, row.answers)
        hits["all"].append(value)
        hits[row.family].append(value)
    return {name: {METRIC: sum(v) / len(v), "num_questions": len(v)} for name, v in hits.items()}
