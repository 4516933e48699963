"""Score stored predictions while they are read, so that the memory use does not grow with their number."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from mpa_ray.evaluation.scores import BenchmarkScores, Groups, MetricReference, ModelScores, PairedDifference, Summary
from mpa_ray.metrics import METRICS, score
from mpa_ray.metrics.answer_types import answer_type
from mpa_ray.observability.progress import Progress
from mpa_ray.records import Prediction

NUM_RESAMPLES = 1000
CONFIDENCE = 0.95
_WARNING_SHARE = 0.3
"""A warning appears if more than this share of a model's predictions look like sentences, or match no answer."""
_SENTENCE_WORDS = 6


@dataclass
class Distribution:
    """How often each score occurs. These counts are enough to compute the mean and its bootstrap interval."""

    counts: Counter[float] = field(default_factory=Counter)

    def add(self, value: float) -> None:
        self.counts[value] += 1

    def summary(self, seed: int = 0) -> Summary:
        """The mean with its 95 % bootstrap interval (percentile method; Efron 1979)."""
        values = np.array(sorted(self.counts))
        counts = np.array([self.counts[value] for value in values.tolist()])
        total = int(counts.sum())
        # Draw how often each distinct score occurs, which is equivalent to drawing `total` scores with replacement.
        resampled = np.random.default_rng(seed).multinomial(total, counts / total, size=NUM_RESAMPLES)
        tail = (1 - CONFIDENCE) / 2
        low, high = np.quantile(resampled @ values / total, [tail, 1 - tail])
        return Summary(float(counts @ values / total), float(low), float(high), total)


@dataclass
class Tally:
    """Counts one model's scores on one benchmark, for each group of questions."""

    metric: str
    groups: dict[str, Distribution] = field(default_factory=lambda: defaultdict(Distribution))
    num_predictions: int = 0
    num_missing: int = 0
    """Questions without a reply."""
    num_sentences: int = 0
    num_zero: int = 0

    def add(self, row: Prediction) -> None:
        value = value_of(row, self.metric)
        for group in groups_of(row):
            self.groups[group].add(value)
        self.num_predictions += 1
        self.num_missing += row.prediction is None
        self.num_sentences += row.prediction is not None and len(row.prediction.split()) >= _SENTENCE_WORDS
        self.num_zero += value == 0

    def scores(self) -> ModelScores:
        return ModelScores(_summaries(self.groups), self.num_missing, list(self._warnings()))

    def _warnings(self) -> Iterator[str]:
        limit = _WARNING_SHARE * self.num_predictions
        if self.num_sentences > limit:
            yield (
                f"{self.num_sentences} of {self.num_predictions} predictions look like sentences "
                f"({_SENTENCE_WORDS} words or more), but the metric expects short answers"
            )
        if self.num_zero > limit:
            yield f"{self.num_zero} of {self.num_predictions} predictions match no answer at all"


def value_of(row: Prediction, metric: str) -> float:
    """The score in [0, 1] of one prediction; a missing prediction counts as wrong."""
    return 0.0 if row.prediction is None else score(metric, row.prediction, row.answers)


def groups_of(row: Prediction) -> Iterator[str]:
    """Yield the groups that a question belongs to: `all`, and one each for its split, family and answer type, such as
    `family: count`."""
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
) -> BenchmarkScores:
    """Score all models on one benchmark.

    Args:
        metric: A key of `METRICS`.
        predictions: For each model, by name, a function that reads the model's predictions from the start.
        pairs: Pairs of models to compare question by question. The result is the second model's score minus the first
            model's score. A pair is skipped if one of its models has no predictions.
        progress: Counts the models that are scored.
    """
    models = {}
    for name, read in predictions.items():
        models[name] = tally(read(), metric).scores()
        progress.advance(1)
    differences = [
        PairedDifference(first, second, paired_difference(predictions[first](), predictions[second](), metric))
        for first, second in pairs
        if first in predictions and second in predictions
    ]
    return BenchmarkScores(MetricReference.of(METRICS[metric]), models, differences)


def tally(predictions: Iterable[Prediction], metric: str) -> Tally:
    """Score one model's predictions."""
    counts = Tally(metric)
    for row in predictions:
        counts.add(row)
    return counts


def paired_difference(before: Iterable[Prediction], after: Iterable[Prediction], metric: str) -> Groups:
    """For each group, the mean over its questions of the score in `after` minus the score in `before`.

    Raises:
        ValueError: the predictions are not about the same questions in the same order.
    """
    groups: dict[str, Distribution] = defaultdict(Distribution)
    for old, new in zip(before, after, strict=True):
        if old.question_id != new.question_id:
            raise ValueError(f"not the same questions: {old.question_id!r} and {new.question_id!r}")
        change = value_of(new, metric) - value_of(old, metric)
        for group in groups_of(old):
            groups[group].add(change)
    return _summaries(groups)


def _summaries(groups: Mapping[str, Distribution]) -> Groups:
    """Summaries of the groups: `all` first, and the others sorted by name. The group `family: all`, which stands for a
    missing family, is left out."""
    names = sorted(groups.keys() - {"family: all"}, key=lambda group: (group != "all", group))
    return {name: groups[name].summary() for name in names}
