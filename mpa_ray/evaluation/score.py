"""Score predictions, apart from making them: in one pass, in memory that does not grow with their number."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mpa_ray.metrics import METRICS, score
from mpa_ray.metrics.answer_types import answer_type
from mpa_ray.observability.progress import Progress
from mpa_ray.records import Prediction

NUM_RESAMPLES = 1000
CONFIDENCE = 0.95
_MANY = 0.3
"""Share of predictions from which on something about them is worth a warning."""
_SENTENCE_WORDS = 6


@dataclass
class Distribution:
    """How often each score was given: all that a mean and its bootstrap need."""

    counts: Counter[float] = field(default_factory=Counter)

    def add(self, value: float) -> None:
        self.counts[value] += 1

    def summary(self, seed: int = 0) -> dict[str, float]:
        """Mean, the bounds of its 95 % bootstrap interval (percentiles; Efron 1979), and the number of questions."""
        values = np.array(sorted(self.counts))
        counts = np.array([self.counts[value] for value in values.tolist()])
        total = int(counts.sum())
        # Drawing `total` scores with replacement is drawing how often each value comes.
        drawn = np.random.default_rng(seed).multinomial(total, counts / total, size=NUM_RESAMPLES)
        edge = (1 - CONFIDENCE) / 2
        low, high = np.quantile(drawn @ values / total, [edge, 1 - edge])
        mean = float(counts @ values / total)
        return {"mean": mean, "low": float(low), "high": float(high), "num_questions": total}


@dataclass
class Tally:
    """Scores of a model on a benchmark, overall and by group."""

    metric: str
    groups: dict[str, Distribution] = field(default_factory=lambda: defaultdict(Distribution))
    num_predictions: int = 0
    num_missing: int = 0
    """Questions that got no reply."""
    num_sentences: int = 0
    num_zero: int = 0

    def add(self, row: Prediction) -> float:
        value = value_of(row, self.metric)
        for group in groups_of(row):
            self.groups[group].add(value)
        self.num_predictions += 1
        self.num_missing += row.prediction is None
        self.num_sentences += row.prediction is not None and len(row.prediction.split()) >= _SENTENCE_WORDS
        self.num_zero += value == 0
        return value

    def record(self) -> dict[str, Any]:
        """For `scores.json`."""
        return {
            "groups": _summaries(self.groups),
            "num_missing": self.num_missing,
            "warnings": list(self._warnings()),
        }

    def _warnings(self) -> Iterator[str]:
        limit = _MANY * self.num_predictions
        if self.num_sentences > limit:
            yield (
                f"{self.num_sentences} of {self.num_predictions} predictions look like sentences "
                f"({_SENTENCE_WORDS} words or more), where the metric expects short answers"
            )
        if self.num_zero > limit:
            yield f"{self.num_zero} of {self.num_predictions} predictions match no answer at all"


def value_of(row: Prediction, metric: str) -> float:
    """The score in [0, 1] of one prediction; none counts as wrong."""
    return 0.0 if row.prediction is None else score(metric, row.prediction, row.answers)


def groups_of(row: Prediction) -> Iterator[str]:
    """`all`, and the row's split, family and answer type, as `family: count`."""
    yield "all"
    if row.split:
        yield f"split: {row.split}"
    yield f"family: {row.family}"
    yield f"answer type: {row.answer_type or answer_type(row.answers[0] if row.answers else '')}"


def score_benchmark(
    metric: str,
    predictions: Mapping[str, Callable[[], Iterable[Prediction]]],
    pairs: Iterable[tuple[str, str]],
    progress: Progress,
) -> dict[str, Any]:
    """The scores of models on one benchmark, for `scores.json`.

    Args:
        metric: A key of `METRICS`.
        predictions: Of each model, which are gone through anew at each call.
        pairs: Models to compare question by question, from the first to the second, where both are among them.
        progress: Counts models.
    """
    defined = METRICS[metric]
    models = {}
    for name, rows in predictions.items():
        models[name] = tally(rows(), metric).record()
        progress.advance(1)
    return {
        "metric": {"name": defined.name, "version": defined.version, "source": defined.source},
        "models": models,
        "differences": [
            {
                "from": first,
                "to": second,
                "groups": paired_difference(predictions[first](), predictions[second](), metric),
            }
            for first, second in pairs
            if first in predictions and second in predictions
        ],
    }


def tally(predictions: Iterable[Prediction], metric: str) -> Tally:
    """Score a model's predictions."""
    found = Tally(metric)
    for row in predictions:
        found.add(row)
    return found


def paired_difference(
    before: Iterable[Prediction], after: Iterable[Prediction], metric: str
) -> dict[str, dict[str, float]]:
    """Mean of each question's after - before, with the bounds of its bootstrap interval, by group.

    Raises:
        ValueError: the two are not about the same questions in the same order.
    """
    groups: dict[str, Distribution] = defaultdict(Distribution)
    for old, new in zip(before, after, strict=True):
        if old.question_id != new.question_id:
            raise ValueError(f"not the same questions: {old.question_id!r} and {new.question_id!r}")
        change = value_of(new, metric) - value_of(old, metric)
        for group in groups_of(old):
            groups[group].add(change)
    return _summaries(groups)


def _summaries(groups: Mapping[str, Distribution]) -> dict[str, dict[str, float]]:
    """`all` first, the others by name; without the family of that name that sets without families give."""
    names = sorted(groups.keys() - {"family: all"}, key=lambda group: (group != "all", group))
    return {name: groups[name].summary() for name in names}
