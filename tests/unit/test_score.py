"""Scores of predictions: means, intervals, groups, paired differences and what is warned of."""

from __future__ import annotations

import sys
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from mpa_ray.evaluation.score import Distribution, groups_of, paired_difference, score_benchmark, tally
from mpa_ray.metrics import METRICS
from mpa_ray.observability.progress import Progress
from mpa_ray.records import Prediction
from mpa_ray.report.scores import render_scores


def row(number: int, prediction: str | None, **changes: object) -> Prediction:
    made = Prediction(f"q{number}", f"i{number}", f"/{number}", "how many?", ["2"], "count", prediction)
    return replace(made, **changes)  # type: ignore[arg-type]


def progress() -> Progress:
    return Progress("score", None, "models", file=sys.stderr)


def test_the_interval_is_the_bootstrap_of_the_scores_themselves() -> None:
    values = [0.0] * 130 + [0.3] * 20 + [1.0] * 150
    distribution = Distribution()
    for value in values:
        distribution.add(value)
    found = distribution.summary()
    draws = np.random.default_rng(1).choice(values, (20_000, len(values))).mean(axis=1)
    low, high = np.quantile(draws, [0.025, 0.975])
    assert found["mean"] == pytest.approx(np.mean(values))
    assert (found["low"], found["high"]) == (pytest.approx(low, abs=0.01), pytest.approx(high, abs=0.01))
    assert found["num_questions"] == 300
    assert distribution.summary() == found


def test_groups_are_split_family_and_answer_type() -> None:
    assert list(groups_of(row(0, "2"))) == ["all", "family: count", "answer type: number"]
    told = row(0, "2", split="human", answer_type="OPEN")
    assert list(groups_of(told)) == ["all", "split: human", "family: count", "answer type: OPEN"]


def test_a_set_without_families_is_not_told_twice() -> None:
    groups = tally([row(0, "2", family="all")], "exact_match").record()["groups"]
    assert list(groups) == ["all", "answer type: number"]


def test_no_reply_counts_as_wrong_and_is_told() -> None:
    found = tally([row(0, "2"), row(1, None), row(2, "3"), row(3, " 2 ")], "exact_match")
    assert found.record()["groups"]["all"]["mean"] == 0.5
    assert found.record()["num_missing"] == 1


def test_warnings_come_above_three_in_ten() -> None:
    sentence = "there are 2 of them in it"
    few = [row(n, sentence if n < 3 else "2") for n in range(10)]
    many = [row(n, sentence if n < 4 else "2") for n in range(10)]
    assert tally(few, "containment").record()["warnings"] == []
    (warning,) = tally(many, "containment").record()["warnings"]
    assert warning.startswith("4 of 10 predictions look like sentences")
    assert tally(many, "exact_match").record()["warnings"][1] == "4 of 10 predictions match no answer at all"


def test_the_difference_is_paired_by_question() -> None:
    before = [row(n, "2" if n < 40 else "3") for n in range(100)]
    after = [row(n, "2" if n < 55 else "3") for n in range(100)]
    found = paired_difference(before, after, "exact_match")["all"]
    assert found["mean"] == pytest.approx(0.15)
    # Only 15 questions changed, all for the better: unpaired intervals would reach below 0.
    assert 0.07 < found["low"] < 0.15 < found["high"] < 0.23
    with pytest.raises(ValueError, match="not the same questions: 'q1' and 'q0'"):
        paired_difference([row(1, "2")], [row(0, "2")], "exact_match")
    with pytest.raises(ValueError, match="shorter"):
        paired_difference(before, after[:-1], "exact_match")


def test_memory_does_not_grow_with_the_number_of_predictions() -> None:
    def peak(count: int) -> int:
        tracemalloc.start()
        try:
            tally((row(number, str(number % 7)) for number in range(count)), "exact_match")
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak(20_000) < peak(2_000) + 100_000


def test_a_benchmark_tells_its_metric_with_source_and_version() -> None:
    models = {"before": lambda: [row(0, "3"), row(1, "2")], "after": lambda: [row(0, "2"), row(1, "2")]}
    found = score_benchmark("anls", models, [("before", "after"), ("before", "elsewhere")], progress())
    metric = METRICS["anls"]
    assert found["metric"] == {"name": "anls", "version": metric.version, "source": metric.source}
    assert found["models"]["after"]["groups"]["all"]["mean"] == 1.0
    (pair,) = found["differences"]
    assert (pair["from"], pair["to"], pair["groups"]["all"]["mean"]) == ("before", "after", 0.5)
    told = render_scores({"mine": found}).splitlines()
    assert told[1] == f"mine: anls, % [95 % interval] ({metric.source}; {metric.version})"
    assert "before -> after" in told[2]
    assert "100.0 [100.0, 100.0]" in told[3]
