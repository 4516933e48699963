"""All metrics by name, with the source and version that a report states beside each score."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mpa_ray.errors import did_you_mean
from mpa_ray.metrics.anls import anls
from mpa_ray.metrics.relaxed import relaxed_accuracy
from mpa_ray.metrics.text import containment, exact_match
from mpa_ray.metrics.vqa import textvqa_m4c, vqa_accuracy, vqa_accuracy_official

Scorer = Callable[[str, Sequence[str]], float]
"""Called with a prediction and the reference answers; returns a score in [0, 1]."""


@dataclass(frozen=True)
class Metric:
    """A way to score predictions."""

    name: str
    score: Scorer
    version: str
    """The version of the evaluator whose results the metric reproduces."""
    source: str
    """Who defines the metric."""
    summary: str


METRICS = {
    metric.name: metric
    for metric in (
        Metric(
            "vqa_accuracy",
            vqa_accuracy,
            "always normalised",
            "visualqa.org, as lmms-eval and VLMEvalKit implement it",
            "soft agreement with the annotators",
        ),
        Metric(
            "vqa_accuracy_official",
            vqa_accuracy_official,
            "a013f00 of 2021",
            "GT-Vision-Lab/VQA",
            "soft agreement with the annotators, without normalisation if all answers are equal",
        ),
        Metric(
            "textvqa_m4c",
            textvqa_m4c,
            "mmf m4c_evaluators",
            "facebookresearch/mmf",
            "TextVQA's soft agreement, after M4C's normalisation",
        ),
        Metric(
            "anls",
            anls,
            "threshold 0.5",
            "Robust Reading Competition",
            "1 - normalised edit distance to the nearest answer, or 0 below 0.5",
        ),
        Metric(
            "relaxed_accuracy",
            relaxed_accuracy,
            "tolerance 5 %",
            "google-research/pix2struct",
            "numbers within 5 % of the answer, other text equal ignoring case",
        ),
        Metric("exact_match", exact_match, "strip and lower case", "VLMEvalKit, Qwen-VL", "equal to an answer"),
        Metric(
            "containment",
            containment,
            "4e69e39",
            "vl2g/MPA, the paper's release",
            "the first answer occurs in the prediction",
        ),
    )
}


def score(metric: str, prediction: str, answers: Sequence[str]) -> float:
    """The score in [0, 1] of one prediction against its reference answers; 0 if there are no answers.

    Every metric accepts any text as a prediction or an answer, and raises no error.

    Raises:
        ValueError: there is no metric of that name.
    """
    if metric not in METRICS:
        similar = did_you_mean(metric, METRICS)
        raise ValueError(
            f"there is no metric {metric!r}. {similar} Choose one of {', '.join(METRICS)}.".replace("  ", " ")
        )
    return METRICS[metric].score(prediction, answers)
