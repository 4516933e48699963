"""The README of an exported student: its model card."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from mpa_ray.config import ARMS, Arm, MeasuredModel, RunConfig, StudentConfig
from mpa_ray.evaluation.scores import Scores
from mpa_ray.models.hub import split_revision
from mpa_ray.records import EpochCounts
from mpa_ray.report.scores import percent


def model_card(
    config: RunConfig,
    student: StudentConfig,
    arm: Arm,
    counts: EpochCounts,
    versions: Mapping[str, str],
    use: str,
    scores: Scores | None = None,
) -> str:
    """Write the model card: how the student was trained and how to use it, as Markdown for the Hugging Face hub.

    Args:
        config: The run.
        student: The student that was trained.
        arm: The arm that the student was trained on.
        counts: The numbers of samples in the training.
        versions: The version of each package.
        use: The section that explains how to use the student, see `mpa_ray.report.card_usage.usage`.
        scores: The run's scores; None before the run is evaluated.
    """
    level = student.level
    method = level.method.model_dump(mode="json", exclude_none=True)
    samples = {
        ARMS[arm].name: counts.num_chosen,
        "mixed in": counts.num_mixed_in,
        "held out": counts.num_held_out,
        "trained on": counts.num_samples,
    }
    lines = [
        "---",
        f"base_model: {split_revision(student.model)[0]}",
        "pipeline_tag: image-text-to-text",
        "tags: [model-parity-alignment, mpa_ray]",
        "---",
        "",
        f"# {student.name}",
        "",
        f"`{student.model}`, aligned with `{config.teacher.model}` by Model Parity Alignment (arXiv 2509.16633): "
        f"trained for one epoch on {ARMS[arm].sentence}.",
        "",
        "| | |",
        "|---|---|",
        f"| task | {config.task} |",
        *(f"| {name} | {number} samples |" for name, number in samples.items()),
        f"| method | {', '.join(f'{name} {_in_words(value)}' for name, value in method.items())} |",
        f"| learning rate, samples per step, seed | {level.learning_rate:g}, {level.batch_size}, {level.seed} |",
        f"| loss | mean over {level.reduction}s |",
        f"| pixels | {student.min_pixels} to {student.max_pixels} |",
        f"| made with | {', '.join(f'{name} {version}' for name, version in versions.items())} |",
    ]
    scored = _score_lines(student.name, arm, scores or {})
    return "\n".join([*lines, *scored, "", use])


def _in_words(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return " and ".join(map(str, value)) if isinstance(value, list) else str(value)


def _score_lines(student: str, arm: Arm, scores: Scores) -> list[str]:
    rows = list(_score_rows(student, arm, scores))
    if not rows:
        return []
    return ["", "| benchmark | metric | questions | before, % | after, % |", "|---|---|---:|---:|---:|", *rows]


def _score_rows(student: str, arm: Arm, scores: Scores) -> Iterator[str]:
    for benchmark, scored in scores.items():
        before, after = (scored.models.get(model.name) for model in MeasuredModel.all_of(student, [arm]))
        if before is not None and after is not None:
            yield (
                f"| {benchmark} | {scored.metric.name} | {before.overall.num_questions} | "
                f"{percent(before.overall)} | {percent(after.overall)} |"
            )
