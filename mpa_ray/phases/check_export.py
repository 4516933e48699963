"""Compare an exported checkpoint's answers in its engine with its answers in transformers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mpa_ray.config import Arm, RunConfig, StudentConfig
from mpa_ray.errors import RunError
from mpa_ray.models.shared_engines import EngineGroup
from mpa_ray.observability.progress import say
from mpa_ray.phases.answering import answer_pass
from mpa_ray.phases.context import RunContext
from mpa_ray.pipeline.run_pass import Admission, Outstanding, run_missing
from mpa_ray.records import LabelledQuestion, Prediction
from mpa_ray.run.export_check import CheckedAnswer, ExportCheck, differs_clearly
from mpa_ray.run.manifest import Manifest
from mpa_ray.run.markers import shard_name
from mpa_ray.run.phase_record import PhaseKey

_NUM_SHOWN = 3


def check_export(context: RunContext[RunConfig], student: StudentConfig, arm: Arm, admission: Admission) -> None:
    """Have an engine answer some questions with the exported checkpoint, and compare its answers with transformers'.

    Answers that differ are reported. An answer that differs is not an error if two tokens were about equally likely
    where it begins to differ, since the number format or the batch may decide between such tokens.

    Raises:
        RunError: more than half of the answers differ, not counting such near-ties.
    """
    run, folder, key = context.run, context.run.training_dir(student.name, arm), PhaseKey("check", student.name, arm)
    check = ExportCheck.read(run, folder)
    for repair in check.repairs:
        say(f"{folder}/merged: {repair}")
    if not student.engine.has_checkpoint or not check.answers:
        return
    labelled = [
        LabelledQuestion(row.annotation_id, row.image_id, row.uri, row.question, [row.answer], "all")
        for row in sorted(check.answers, key=lambda row: (row.image_id, row.annotation_id))
    ]
    questions = run.dataset(f"{folder}/check/questions", LabelledQuestion)
    answers = run.dataset(f"{folder}/check/answers", Prediction)
    questions.commit_missing(shard_name(0), labelled)
    exported = {"model": run.merged_model(student.name, arm), "max_num_replicas": None, "num_replicas": 1}
    group = EngineGroup.single(student.name, student.model_copy(update=exported))
    work = answer_pass(context, key, group, questions, answers)
    # The questions are training samples. Their images are in the corpus, which may have moved, or in labelled sets.
    work = replace(work, reader=replace(work.reader, moved=context.moved_root))
    outstanding = Outstanding.of(answers, Manifest(len(labelled), 1))
    context.failures.add(key.label, run_missing(run, work, outstanding, admission).may_pass)
    line = compare_answers(
        f"{run.storage.root}/{folder}/merged", student.engine.kind, check.answers, list(answers.rows([shard_name(0)]))
    )
    if line is not None:
        say(f"WARNING: {line}")


def compare_answers(
    exported: str, engine: str, expected: Sequence[CheckedAnswer], predictions: Sequence[Prediction]
) -> str | None:
    """Compare an engine's answers with those of transformers. Return a line about the differences, or
    None.

    Args:
        exported: The folder of the exported checkpoint.
        engine: The kind of engine.
        expected: The answers of transformers.
        predictions: The answers of the engine to the same questions.

    Raises:
        RunError: more than half of the answers differ, not counting near-ties.
    """
    ties = {row.annotation_id: row.near_ties for row in expected}
    different = [row for row in predictions if (row.prediction or "").strip() != row.answers[0].strip()]
    if not different:
        return None
    clear = [row for row in different if differs_clearly(row.answers[0], ties[row.question_id], row.prediction or "")]
    examples = "; ".join(
        f"{row.question!r}: {row.prediction!r}, not {row.answers[0]!r}" for row in (clear or different)[:_NUM_SHOWN]
    )
    if len(clear) > len(predictions) / 2:
        raise RunError(
            f"{exported} answers differently in {engine} and in transformers: {examples}. Delete "
            f"{exported.removesuffix('/merged')} to train again."
        )
    return (
        f"{exported}: {len(different)} of {len(predictions)} answers differ between {engine} and transformers, "
        f"{len(different) - len(clear)} of them where two tokens were about equally likely: {examples}"
    )
