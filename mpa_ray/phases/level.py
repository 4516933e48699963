"""The Parity Leveler: every student is fine-tuned on its D_PI and, for comparison, on its other arms."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING

from mpa_ray.config import Arm, RunConfig, StudentConfig
from mpa_ray.config.measured_model import MeasuredModel
from mpa_ray.errors import ConfigError, RunError
from mpa_ray.models.chat_template import closing_tag, load_processor
from mpa_ray.models.checkpoints import model_identity, processor_folder
from mpa_ray.observability.progress import Progress, say
from mpa_ray.phases.check_export import check_export
from mpa_ray.phases.context import RunContext, installed_versions
from mpa_ray.phases.preflight import check_trainable
from mpa_ray.phases.sequence_limit import with_sequence_limit
from mpa_ray.pipeline.run_pass import Admission, error_recorded, recorded
from mpa_ray.report.card import model_card
from mpa_ray.report.card_usage import usage
from mpa_ray.run.ownership import Ownership, owned
from mpa_ray.run.parity_export import parity_of
from mpa_ray.run.phase_record import PhaseKey
from mpa_ray.run.redo import outdated
from mpa_ray.run.training_state import TrainingState

if TYPE_CHECKING:
    from mpa_ray.leveling.arms import Samples, SampleSources


def level(context: RunContext[RunConfig]) -> None:
    """Fine-tune all students on all their arms. A student of a later round is left out until its D_PI exists."""
    for index, student in enumerate(context.configured.students):
        check_trainable(student, index, context.config.object_store)
        check_labelled_sets(context, student)
    for student in students_ready(context, context.run.is_identified):
        for arm in student.arms:
            level_student(context, student, arm)


def students_ready(context: RunContext[RunConfig], is_ready: Callable[[str], bool]) -> list[StudentConfig]:
    """The students of all rounds. A student of a later round is left out, with a message, if it is not ready."""
    first = [student.name for student in context.configured.students]
    ready = []
    for student in context.config.students:
        if student.name in first or is_ready(student.name):
            ready.append(student)
        else:
            say(f"{student.name} has no parity samples yet and is skipped: run mpa-ray identify first.")
    return ready


def check_labelled_sets(context: RunContext[RunConfig], student: StudentConfig) -> None:
    """Read the labelled sets that a student's training needs, to report errors before any training starts. If an epoch
    is already planned, its labelled sets are not read again.

    Raises:
        ConfigError: a file, a field or an answer of a labelled set is missing.
    """
    run = context.run
    arms = [arm for arm in student.arms if not run.has_manifest(f"{run.training_dir(student.name, arm)}/epoch")]
    arms_of = {"labels": ("labels",), "level.replay_from": ("parity",)}
    for setting in student.labelled_sets:
        if not set(arms).isdisjoint(arms_of.get(setting, arms)):
            labelled = context.labelled_set(student, setting)
            with Progress(f"read {labelled.field}", None, "questions") as progress:
                for _ in labelled.questions():
                    progress.advance(1)


def level_student(
    context: RunContext[RunConfig],
    student: StudentConfig,
    arm: Arm,
    admission: Admission = nullcontext,
    admission_to_check: Admission = nullcontext,
) -> None:
    """Fine-tune one student on an arm, export it, and check the export in its engine.

    Args:
        context: The run.
        student: The student.
        arm: The set of samples that the student is trained on.
        admission: Makes the context manager in which the training runs.
        admission_to_check: Makes the context manager in which the check runs.

    Raises:
        ConfigError: the student has no D_PI yet.
        LostOwnership: another command has taken over the training.
        RunError: the training failed, or the exported model answers differently in its
            engine than in transformers.
    """
    key = PhaseKey("level", student.name, arm)
    with error_recorded(context.run, key):
        _level_student(context, student, key, admission, admission_to_check)


def _level_student(
    context: RunContext[RunConfig],
    student: StudentConfig,
    key: PhaseKey,
    admission: Admission,
    admission_to_check: Admission,
) -> None:
    run, arm = context.run, key.arm
    datasets = ["corpus", "annotations", run.verdicts_dir(student.name)]
    context.begin(writes=[run.student_dir(student.name, arm)], reads=datasets)
    if run.is_leveled(student.name, arm) and not _trains_again(context, student, arm, key.label):
        say(f"{key.label}: already done")
        return
    version = _check_parity(context, student.name)
    folder = run.training_dir(student.name, arm)
    # This command waits while another one trains the student, and stops if the other one has different settings.
    with owned(run.storage, folder, key.label, run.epoch(folder).check_fingerprint) as ownership:
        if run.storage.exists(f"{folder}/complete.json"):
            say(f"{key.label}: another command has finished this training")
            return
        _train(context, student, key, folder, version, ownership, admission)
        with error_recorded(run, PhaseKey("check", student.name, arm)):
            check_export(context, student, arm, admission_to_check)
        ownership.check()
        _begin_predictions_of_other_weights(context, student, arm)
        run.mark_leveled(student.name, arm, ownership.number)


def _begin_predictions_of_other_weights(context: RunContext[RunConfig], student: StudentConfig, arm: Arm) -> None:
    """Begin new predictions if the present ones were made with other weights than the exported ones.

    After a repair of damaged files, a part of the training may be repeated, and its result may differ in the last bits.
    """
    run, name = context.run, MeasuredModel(student.name, arm).name
    present = {
        dataset: fingerprint["model"]
        for dataset, fingerprint in run.fingerprints.known().items()
        if dataset == run.predictions(_benchmark_of(dataset), name).folder
    }
    if not present:
        return
    exported = model_identity(run.merged_model(student.name, arm), context.config.object_store)
    if any(answered != exported for answered in present.values()):
        run.begin_predictions(name)


def _benchmark_of(dataset: str) -> str:
    return dataset.removeprefix("evaluation/").partition("/predictions/")[0]


def _train(
    context: RunContext[RunConfig],
    student: StudentConfig,
    key: PhaseKey,
    folder: str,
    version: str,
    ownership: Ownership,
    admission: Admission,
) -> None:
    config, run = context.config, context.run
    # Ray and torch take seconds to import, and a finished phase needs neither.
    from mpa_ray.leveling.driver import fine_tune
    from mpa_ray.leveling.epoch_plan import plan_epoch
    from mpa_ray.leveling.prompts import PromptCheck
    from mpa_ray.pipeline.cluster import start_ray

    start_ray()
    with admission(), recorded(run, key):
        if not run.has_manifest(f"{folder}/epoch"):
            run.record_trained_version(folder, version)
        is_promptable = PromptCheck(student, config.object_store, context.task)
        plan = plan_epoch(run, folder, sample_sources(context, student), student.level, key.arm, is_promptable)
        closing = _closing_tag(context, student)
        versions, served = installed_versions(), with_sequence_limit(context, student)
        cards = {
            processor_scales: model_card(
                config,
                student,
                key.arm,
                plan.counts,
                versions,
                usage(served, context.task, config.answer.max_new_tokens, processor_scales, closing),
            )
            for processor_scales in (False, True)
        }
        fine_tune(run, config, student, key, context.task, plan, folder, cards, ownership)
        state = TrainingState.read(run, folder)
        if state is not None and (warning := state.retained.forgetting_warning()) is not None:
            say(f"WARNING: {key.label}: the student {warning}")


def _closing_tag(context: RunContext[RunConfig], student: StudentConfig) -> str:
    if not student.engine.has_checkpoint:
        return ""
    processor = load_processor(processor_folder(student.model, context.config.object_store))
    return closing_tag(processor, student.chat_template_args)


def _trains_again(context: RunContext[RunConfig], student: StudentConfig, arm: Arm, label: str) -> bool:
    """Whether to repeat the training of a trained student. If so, begin a new training run, and keep the finished
    one."""
    run = context.run
    if not run.is_trained_before_redo(student.name, arm):
        return False
    if not context.again.relevel:
        say(
            f"WARNING: {label}: the student was trained on an earlier D_PI, which has been made again since. Run this "
            "command with --relevel to train the student on the new one."
        )
        return False
    if any(student.name in (first.name_in(n) for n in range(1, first.rounds + 1)) for first in _with_rounds(context)):
        raise ConfigError(
            "--relevel",
            student.name,
            "has several rounds, and the later rounds start from the model of the finished training.",
            "Give the student another name, so that all of its rounds are made again.",
        )
    folder = run.train_again(student.name, arm)
    say(f"{label}: the student was trained on an earlier D_PI and is trained again in {run.storage.root}/{folder}")
    return True


def _with_rounds(context: RunContext[RunConfig]) -> list[StudentConfig]:
    return [student for student in context.configured.students if student.rounds > 1]


def _check_parity(context: RunContext[RunConfig], student: str) -> str:
    """Return the version of the verdicts that the student's D_PI was exported from.

    Raises:
        ConfigError: there is no D_PI yet.
        RunError: annotations or verdicts have been redone since D_PI was exported.
    """
    run = context.run
    version = run.parity_version(student)
    if version is None:
        problem = f"has no parity samples of {student} yet."
        raise ConfigError("run_dir", run.storage.root, problem, "Run mpa-ray identify first.")
    verdicts = run.verdicts(student)
    if version != verdicts.version() or outdated(verdicts, run.annotations, run.manifest().shards):
        raise RunError(f"the parity samples of {student} are older than its verdicts. Run mpa-ray identify first.")
    return version


def sample_sources(context: RunContext[RunConfig], student: StudentConfig) -> SampleSources:
    """The datasets that a student's training may draw samples from."""
    from mpa_ray.leveling.arms import SampleSources

    def labelled(setting: str) -> Samples | None:
        return context.labelled_set(student, setting).samples if setting in student.labelled_sets else None

    run = context.run
    return SampleSources(
        parity=partial(parity_of, run, student.name),
        verdicts=partial(run.verdicts(student.name).rows, run.manifest().shards),
        labels=labelled("labels"),
        replayed=labelled("level.replay_from"),
        held_out=labelled("level.holdout.questions"),
    )
