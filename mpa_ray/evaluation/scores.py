"""The scores of models on benchmarks, as `evaluation/scores.json` holds them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Annotated

from pydantic import Field

from mpa_ray.metrics import Metric
from mpa_ray.run.run import SCORES, Run
from mpa_ray.textual import Json


@dataclass(frozen=True)
class Summary:
    """The mean over a group of questions. It is a mean of scores, which are in [0, 1], or of differences between
    scores, which are in [-1, 1]."""

    mean: float
    low: float
    """The lower bound of the mean's 95 % bootstrap interval."""
    high: float
    """The upper bound of the interval."""
    num_questions: int


Groups = dict[str, Summary]
"""Summaries by group of questions: `all`, and splits, families and answer types such as `family: count`."""


@dataclass(frozen=True)
class MetricReference:
    """The metric that computed the scores, and the evaluator whose results the metric reproduces."""

    name: str
    version: str
    """The version of the evaluator whose results the metric reproduces."""
    source: str
    """Who defines the metric."""

    @classmethod
    def of(cls, metric: Metric) -> MetricReference:
        return cls(metric.name, metric.version, metric.source)


@dataclass(frozen=True)
class ModelScores:
    """One model's scores on one benchmark."""

    groups: Groups
    num_missing: int
    """Questions without a reply, which count as wrong."""
    warnings: list[str]

    @property
    def overall(self) -> Summary:
        return self.groups["all"]


@dataclass(frozen=True)
class Gain:
    """A student's scores on a group of questions before and after training, and the gain."""

    before: Summary
    after: Summary
    gain: Summary
    """The paired difference, after minus before."""


@dataclass(frozen=True)
class PairedDifference:
    """How one model's scores differ from another's, question by question."""

    from_model: Annotated[str, Field(alias="from")]
    to_model: Annotated[str, Field(alias="to")]
    groups: Groups
    """For each group, the mean of `to_model`'s score minus `from_model`'s score."""

    def to_json(self) -> dict[str, Json]:
        return {"from": self.from_model, "to": self.to_model, "groups": asdict(self)["groups"]}


@dataclass(frozen=True)
class BenchmarkScores:
    """The scores of all models on one benchmark."""

    metric: MetricReference
    models: dict[str, ModelScores]
    """Scores by the models' names, such as `small.before`."""
    differences: list[PairedDifference]

    @property
    def without_replies(self) -> list[str]:
        """The models that replied to no question at all."""
        return [name for name, model in self.models.items() if model.num_missing == model.overall.num_questions]

    def without(self, names: Collection[str]) -> BenchmarkScores:
        """The scores without these models and without the comparisons in which they occur."""
        models = {name: model for name, model in self.models.items() if name not in names}
        pairs = [pair for pair in self.differences if not {pair.from_model, pair.to_model} & set(names)]
        return BenchmarkScores(self.metric, models, pairs)

    def gains(self, before: str, after: str) -> dict[str, Gain] | None:
        """For each group of questions, how much the model `after` gains over the model `before`; None if the two were
        not compared."""
        for pair in self.differences:
            if (pair.from_model, pair.to_model) == (before, after):
                old, new = self.models[before].groups, self.models[after].groups
                return {group: Gain(old[group], new[group], change) for group, change in pair.groups.items()}
        return None

    def to_json(self) -> dict[str, Json]:
        return {
            "metric": asdict(self.metric),
            "models": {name: asdict(model) for name, model in self.models.items()},
            "differences": [pair.to_json() for pair in self.differences],
        }


Scores = Mapping[str, BenchmarkScores]
"""Scores by the benchmarks' names."""


def scores_to_json(scores: Scores) -> dict[str, Json]:
    return {benchmark: scored.to_json() for benchmark, scored in scores.items()}


def write_scores(run: Run, scores: Scores) -> None:
    run.write_json(SCORES, scores_to_json(scores))


def read_scores(run: Run) -> dict[str, BenchmarkScores]:
    """The run's scores by benchmark; empty before its first evaluation is scored."""
    if not run.storage.exists(SCORES):
        return {}
    return run.read_as(SCORES, dict[str, BenchmarkScores])
