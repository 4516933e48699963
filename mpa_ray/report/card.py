"""The README of an exported student."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mpa_ray.config import Arm, RunConfig, StudentConfig, measured_as
from mpa_ray.records import EpochCounts
from mpa_ray.report.scores import percent


def model_card(
    config: RunConfig,
    student: StudentConfig,
    arm: Arm,
    counts: EpochCounts,
    versions: Mapping[str, str],
    scores: Mapping[str, Any] | None = None,
) -> str:
    """What a student was made of, in the form that the Hugging Face hub shows.

    Args:
        config: The run's.
        student: The one that was trained.
        arm: On what.
        counts: Of what it was trained on.
        versions: Of the libraries.
        scores: `scores.json`, once there is one.
    """
    level = student.level
    method = level.method.model_dump(exclude_none=True)
    told = {
        arm_name(arm): counts.num_chosen,
        "mixed in": counts.num_mixed_in,
        "held out": counts.num_held_out,
        "trained on": counts.num_samples,
    }
    lines = [
        "---",
        f"base_model: {student.model}",
        "pipeline_tag: image-text-to-text",
        "tags: [model-parity-alignment, mpa_ray]",
        "---",
        "",
        f"# {student.name}",
        "",
        f"`{student.model}`, aligned with `{config.teacher.model}` by Model Parity Alignment (arXiv 2509.16633): "
        f"trained for one epoch on {_made_of(arm)}.",
        "",
        "| | |",
        "|---|---|",
        f"| task | {config.task} |",
        *(f"| {name} | {number} samples |" for name, number in told.items()),
        f"| method | {', '.join(f'{name} {value}' for name, value in method.items())} |",
        f"| learning rate, samples per step, seed | {level.learning_rate:g}, {level.batch_size}, {level.seed} |",
        f"| loss | mean over {level.reduction}s |",
        f"| pixels | {student.min_pixels} to {student.max_pixels} |",
        f"| made with | {', '.join(f'{name} {version}' for name, version in versions.items())} |",
    ]
    return "\n".join([*lines, *_measured(student.name, measured_as(arm), scores or {}), ""])


def _made_of(arm: Arm) -> str:
    asked = "questions about unlabeled images that the teacher wrote and answered"
    return {
        "parity": "questions about unlabeled images that the teacher answers alike twice and the student did not",
        "all": asked,
        "consistent": f"{asked} alike twice",
        "random": f"{asked}, drawn at random",
        "labels": "a labelled set",
    }[arm]


def arm_name(arm: Arm) -> str:
    """What an arm trains on, in a few words."""
    return {
        "parity": "D_PI",
        "all": "D_PA",
        "consistent": "teacher-consistent part of D_PA",
        "random": "random part of D_PA",
        "labels": "labelled set",
    }[arm]


def _measured(student: str, when_trained: str, scores: Mapping[str, Any]) -> list[str]:
    rows = []
    for benchmark, scored in scores.items():
        before, after = (scored["models"].get(f"{student}.{when}") for when in ("before", when_trained))
        if before is not None and after is not None:
            cells = (percent(model["groups"]["all"]) for model in (before, after))
            number = before["groups"]["all"]["num_questions"]
            rows.append(f"| {benchmark} | {scored['metric']['name']} | {number} | {' | '.join(cells)} |")
    if not rows:
        return []
    return ["", "| benchmark | metric | questions | before, % | after, % |", "|---|---|---:|---:|---:|", *rows]
