"""All metrics by name, with the version and source that a report has to state beside a number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mpa_ray.metrics.anls import anls
from mpa_ray.metrics.relaxed import relaxed_accuracy
from mpa_ray.metrics.text import containment, exact_match
from mpa_ray.metrics.vqa import textvqa_m4c, vqa_accuracy, vqa_accuracy_official

Scorer = Callable[[str, Sequence[str]], float]
"""Takes a prediction and the reference answers; gives a score in [0, 1]."""


@dataclass(frozen=True)
class Metric:
    """How predictions are scored."""

    name: str
    score: Scorer
    version: str
    """Of the evaluator that it follows."""
    source: str
    """Who defines it."""
    summary: str

    @property
    def citation(self) -> str:
        return f"{self.name} ({self.source}, {self.version})"


METRICS = {
    metric.name: metric
    for metric in (
        Metric(
            "vqa_accuracy",
            vqa_accuracy,
            "always normalised",
            "visualqa.org, as lmms-eval and VLMEvalKit read it",
            "soft agreement with the annotators",
        ),
        Metric(
            "vqa_accuracy_official",
            vqa_accuracy_official,
            "a013f00 of 2021",
            "GT-Vision-Lab/VQA",
            "the same, but answers that are all equal are compared as they are written",
        ),
        Metric(
            "textvqa_m4c",
            textvqa_m4c,
            "mmf m4c_evaluators",
            "facebookresearch/mmf",
            "TextVQA's soft agreement, with M4C's way of writing answers alike",
        ),
        Metric(
            "anls",
            anls,
            "threshold 0.5",
            "Robust Reading Competition",
            "1 - normalised edit distance to the nearest answer, 0 below a half",
        ),
        Metric(
            "relaxed_accuracy",
            relaxed_accuracy,
            "tolerance 5 %",
            "google-research/pix2struct",
            "numbers within 5 % of the answer, other text equal without case",
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
    """The score in [0, 1] of one prediction against its reference answers; without any answer it is 0.

    Raises:
        ValueError: there is no metric of that name. No prediction and no answer raises anything.
    """
    if metric not in METRICS:
        raise ValueError(f"there is no metric {metric!r}; choose one of {', '.join(METRICS)}")
    return METRICS[metric].score(prediction, answers)
