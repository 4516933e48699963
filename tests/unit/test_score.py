"""Scores of predictions: means, intervals, groups, paired differences and warnings."""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mpa_ray.evaluation.score import Distribution, groups_of, paired_difference, score_benchmark, tally
from mpa_ray.evaluation.scores import BenchmarkScores, Gain, read_scores, write_scores
from mpa_ray.metrics import METRICS
from mpa_ray.observability.progress import Progress
from mpa_ray.records import Prediction
from mpa_ray.report.scores import render_scores
from mpa_ray.run.run import Run


def row(number: int, prediction: str | None, **changes: object) -> Prediction:
    state = "failed" if prediction is None else "kept"
    answered = Prediction(
        f"q{number}", f"i{number}", f"/{number}", "how many?", ["2"], "count", state, prediction=prediction
    )
    return replace(answered, **changes)  # type: ignore[arg-type]


def progress() -> Progress:
    return Progress("score", None, "models", to_stderr=True)


def scored() -> BenchmarkScores:
    models = {"before": lambda: [row(0, "3"), row(1, "2")], "after": lambda: [row(0, "2"), row(1, "2")]}
    return score_benchmark("anls", models, [("before", "after"), ("before", "elsewhere")], progress())


def test_the_interval_is_the_bootstrap_of_the_scores_themselves() -> None:
    values = [0.0] * 130 + [0.3] * 20 + [1.0] * 150
    distribution = Distribution()
    for value in values:
        distribution.add(value)
    summary = distribution.summary()
    draws = np.random.default_rng(1).choice(values, (20_000, len(values))).mean(axis=1)
    low, high = np.quantile(draws, [0.025, 0.975])
    assert summary.mean == pytest.approx(np.mean(values))
    assert (summary.low, summary.high) == (pytest.approx(low, abs=0.01), pytest.approx(high, abs=0.01))
    assert summary.num_questions == 300
    assert distribution.summary() == summary


def test_groups_are_split_family_and_answer_type() -> None:
    assert list(groups_of(row(0, "2"))) == ["all", "family: count", "answer type: number"]
    question = row(0, "2", split="human", answer_type="OPEN")
    assert list(groups_of(question)) == ["all", "split: human", "family: count", "answer type: OPEN"]


def test_a_benchmark_without_families_has_no_group_of_its_placeholder() -> None:
    assert list(tally([row(0, "2", family="all")], "exact_match").scores().groups) == ["all", "answer type: number"]


def test_a_question_without_a_reply_counts_as_wrong_and_is_counted() -> None:
    scores = tally([row(0, "2"), row(1, None), row(2, "3"), row(3, " 2 ")], "exact_match").scores()
    assert (scores.overall.mean, scores.num_missing) == (0.5, 1)


def test_a_model_that_replied_to_nothing_is_left_out_of_the_scores() -> None:
    models = {"a": lambda: [row(0, "word")], "silent": lambda: [row(0, None)]}
    both = score_benchmark("anls", models, [("a", "silent")], progress())
    assert both.without_replies == ["silent"]
    others = both.without(both.without_replies)
    assert (list(others.models), others.differences) == (["a"], [])


def test_warnings_come_above_three_in_ten() -> None:
    sentence = "there are 2 of them in it"
    few = [row(n, sentence if n < 3 else "2") for n in range(10)]
    many = [row(n, sentence if n < 4 else "2") for n in range(10)]
    assert tally(few, "containment").scores().warnings == []
    (warning,) = tally(many, "containment").scores().warnings
    assert warning.startswith("4 of 10 predictions look like sentences")
    assert tally(many, "exact_match").scores().warnings[1] == "4 of 10 predictions match no answer at all"


def test_the_difference_is_paired_by_question() -> None:
    before = [row(n, "2" if n < 40 else "3") for n in range(100)]
    after = [row(n, "2" if n < 55 else "3") for n in range(100)]
    change = paired_difference(before, after, "exact_match")["all"]
    assert change.mean == pytest.approx(0.15)
    # Only 15 questions changed, all for the better: unpaired intervals would reach below 0.
    assert 0.07 < change.low < 0.15 < change.high < 0.23
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


def test_scores_name_their_metric_with_source_and_version() -> None:
    scores, metric = scored(), METRICS["anls"]
    assert (scores.metric.name, scores.metric.version, scores.metric.source) == ("anls", metric.version, metric.source)
    lines = render_scores({"mine": scores}).splitlines()
    assert lines[1] == f"mine: anls, % [95 % interval] ({metric.source}; {metric.version})"
    assert "before -> after" in lines[2]
    assert "100.0 [100.0, 100.0]" in lines[3]


def test_gains_are_known_of_compared_models_alone() -> None:
    scores = scored()
    (pair,) = scores.differences
    assert (pair.from_model, pair.to_model, pair.groups["all"].mean) == ("before", "after", 0.5)
    gains = scores.gains("before", "after")
    assert gains is not None
    assert gains["all"] == Gain(scores.models["before"].overall, scores.models["after"].overall, pair.groups["all"])
    assert scores.gains("after", "before") is None
    assert scores.gains("before", "elsewhere") is None


def test_scores_are_stored_and_read_back(tmp_path: Path) -> None:
    run = Run.open(str(tmp_path))
    assert read_scores(run) == {}
    write_scores(run, {"mine": scored()})
    assert read_scores(run) == {"mine": scored()}
    content = json.loads((tmp_path / "evaluation/scores.json").read_text())["mine"]
    assert content["metric"].keys() == {"name", "version", "source"}
    assert content["models"]["after"].keys() == {"groups", "num_missing", "warnings"}
    assert content["models"]["after"]["groups"]["all"] == {"mean": 1.0, "low": 1.0, "high": 1.0, "num_questions": 2}
    (pair,) = content["differences"]
    assert (pair["from"], pair["to"], pair["groups"]["all"]["mean"]) == ("before", "after", 0.5)
