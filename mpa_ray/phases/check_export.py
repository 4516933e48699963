"""Compare an exported checkpoint's answers in its engine with its answers in transformers."""

from __future__ import annotations

from dataclasses import replace

from mpa_ray.config import Arm, RunConfig, StudentConfig
from mpa_ray.errors import RunError
from mpa_ray.models.shared_engines import EngineGroup
from mpa_ray.observability.progress import say
from mpa_ray.phases.answering import answer_pass
from mpa_ray.phases.context import RunContext
from mpa_ray.pipeline.run_pass import Admission, Outstanding, run_missing
from mpa_ray.records import LabelledQuestion, Prediction
from mpa_ray.run.export_check import ExportCheck
from mpa_ray.run.manifest import Manifest
from mpa_ray.run.markers import shard_name
from mpa_ray.run.phase_record import PhaseKey

_NUM_SHOWN = 3


def check_export(context: RunContext[RunConfig], student: StudentConfig, arm: Arm, admission: Admission) -> None:
    """Have an engine answer some questions with the exported checkpoint, and compare its answers with transformers'.

    Raises:
        RunError: more than half of the answers differ.
    """
    run, folder, key = context.run, context.run.training_dir(student.name, arm), PhaseKey("check", student.name, arm)
    expected = ExportCheck.read(run, folder).answers
    if not student.engine.has_checkpoint or not expected:
        return
    labelled = [
        LabelledQuestion(row.annotation_id, row.image_id, row.uri, row.question, [row.answer], "all")
        for row in sorted(expected, key=lambda row: (row.image_id, row.annotation_id))
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
    different = [
        row for row in answers.rows([shard_name(0)]) if (row.prediction or "").strip() != row.answers[0].strip()
    ]
    if not different:
        return
    examples = "; ".join(
        f"{row.question!r}: {row.prediction!r}, not {row.answers[0]!r}" for row in different[:_NUM_SHOWN]
    )
    if len(different) > len(labelled) / 2:
        raise RunError(
            f"{folder}/merged answers differently in {student.engine.kind} and in transformers: {examples}. "
            f"Delete {run.storage.root}/{folder} to train again."
        )
    say(
        f"WARNING: {folder}/merged: {len(different)} of {len(labelled)} answers differ between {student.engine.kind} "
        f"and transformers (probably where two tokens were about equally likely): {examples}"
    )
