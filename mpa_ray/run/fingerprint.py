"""The settings that the content of each dataset depends on, by name."""

from __future__ import annotations

from collections.abc import Callable

from mpa_ray.config import Arm, EvaluationRunConfig, ModelConfig, RunConfig, StudentConfig
from mpa_ray.models.checkpoints import model_identity
from mpa_ray.run.fingerprint_changes import Fingerprint
from mpa_ray.run.run import Run
from mpa_ray.tasks.task import PREAMBLE, SYSTEM_PROMPT, Task

ALGORITHM_VERSION = 7
"""Increased whenever a change to the code changes the rows that the same settings yield."""


Labelled = Callable[[StudentConfig, str], Fingerprint]
"""Takes a student and a key of `StudentConfig.labelled_sets`. Returns values that identify the labelled set at this
key, wherever its files are."""


def _model(config: ModelConfig, run: EvaluationRunConfig) -> Fingerprint:
    return {
        "model": model_identity(config.model, run.object_store),
        "chat_template_args": config.chat_template_args,
        "max_reasoning_tokens": config.max_reasoning_tokens,
        "engine": config.engine.kind,
        "min_pixels": config.min_pixels,
        "max_pixels": config.max_pixels,
        "max_image_pixels": config.max_image_pixels,
        **config.engine.identity_fields(),
    }


def _answering(config: EvaluationRunConfig, task: Task) -> Fingerprint:
    return {
        "algorithm_version": ALGORITHM_VERSION,
        "task": task.name,
        "task_version": task.version,
        "system_prompt": SYSTEM_PROMPT,
        "preamble": PREAMBLE,
        "answer_prompt": task.answer_template,
        "answer.max_new_tokens": config.answer.max_new_tokens,
    }


def corpus_fingerprint(config: RunConfig) -> Fingerprint:
    """The settings that decide which images are listed. Settings that affect only speed or later phases are left out.

    Shards of different sizes hold the same images in the same order, so the sizes may change even during indexing.
    """
    sizes = {"shard_size", "max_shard_bytes"}
    source = config.source.model_dump(mode="json", exclude={"num_listers", "skip_duplicates", *sizes})
    return {"algorithm_version": ALGORITHM_VERSION, **source}


def annotation_fingerprint(config: RunConfig, task: Task) -> Fingerprint:
    """The settings that the annotations depend on."""
    sampling = config.annotate.sampling.model_dump(mode="json")
    return {
        **_answering(config, task),
        "annotation_prompt": task.annotation_prompt(config.annotate.reply == "json"),
        "annotate.reply": config.annotate.reply,
        "task.labels": task.labels.model_dump(mode="json"),
        "task.max_answer_words": task.max_answer_words,
        "source.skip_duplicates": config.source.skip_duplicates,
        "annotate.num_questions": config.annotate.num_questions,
        "annotate.num_second_answers": config.annotate.num_second_answers,
        **{f"annotate.sampling.{name}": value for name, value in sampling.items()},
        **{f"teacher.{name}": value for name, value in _model(config.teacher, config).items()},
    }


def verdict_fingerprint(config: RunConfig, task: Task, student: StudentConfig) -> Fingerprint:
    """The settings that a student's verdicts depend on, without those that only the annotations depend on."""
    return {
        **_answering(config, task),
        "identify.matcher": (config.identify.matcher or task.matcher).model_dump(mode="json"),
        "identify.ask_where_teacher_disagrees": config.identify.ask_where_teacher_disagrees,
        **{f"student.{name}": value for name, value in _model(student, config).items()},
    }


def level_fingerprint(
    config: RunConfig, task: Task, student: StudentConfig, arm: Arm, labelled: Labelled
) -> Fingerprint:
    """The settings that a training run depends on, without those that only the annotations depend on."""
    # The excluded settings may change between attempts, because they do not change what is trained.
    settings = student.level.of_arm(arm)
    level = settings.model_dump(
        mode="json",
        exclude={
            "checkpoint_every_steps",
            "checkpoint_every_minutes",
            "max_failures",
            "cpus_per_worker",
            "gpus_per_worker",
            "accelerator_type",
            "num_workers",
            "parallel",
            "tokens_per_micro_batch",
            "gradient_checkpointing",
            "report_to",
        },
    )
    if settings.replay_from is not None:
        level["replay_from"] = labelled(student, "level.replay_from")
    if settings.holdout is not None and settings.holdout.questions is not None:
        level["holdout"]["questions"] = labelled(student, "level.holdout.questions")
    if arm == "labels" and student.labels is not None:
        level["labels"] = labelled(student, "labels")
    return {**verdict_fingerprint(config, task, student), **{f"level.{k}": v for k, v in level.items()}, "arm": arm}


def prediction_fingerprint(config: EvaluationRunConfig, task: Task, model: ModelConfig) -> Fingerprint:
    """The settings that a model's answers to a benchmark depend on. The questions have their own fingerprint."""
    return {**_answering(config, task), **_model(model, config)}


def of_dataset(config: RunConfig, task: Task, folder: str, labelled: Labelled) -> Fingerprint:
    """Return the fingerprint of the dataset in a folder of the run. Predictions have `prediction_fingerprint` instead.

    Raises:
        ConfigError: a labelled set cannot be read.
        KeyError: the configuration describes no dataset in this folder.
    """
    if folder == "corpus":
        return corpus_fingerprint(config)
    if folder == "annotations":
        return annotation_fingerprint(config, task)
    for student in config.students:
        if folder == Run.verdicts_dir(student.name):
            return verdict_fingerprint(config, task, student)
        for arm in student.arms:
            if folder == Run.student_dir(student.name, arm):
                return level_fingerprint(config, task, student, arm, labelled)
    raise KeyError(folder)
