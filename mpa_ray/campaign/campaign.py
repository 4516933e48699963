"""Align many students in one job. The teacher annotates once; each student continues as soon as its input exists."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial

from mpa_ray.campaign.admission import AdmissionController, Resources
from mpa_ray.campaign.announcements import ShardAnnouncements
from mpa_ray.campaign.end_of_campaign import CountsDiffer, score_and_report
from mpa_ray.config import (
    MeasuredModel,
    ModelConfig,
    ObjectStoreConfig,
    RunConfig,
    StudentConfig,
)
from mpa_ray.corpus.index import index_shards
from mpa_ray.errors import AccessLost, ConfigError, RunError, Unfinished, may_pass
from mpa_ray.errors.remedies import continues_at_once
from mpa_ray.models.checkpoints import model_identity
from mpa_ray.models.shared_engines import EngineGroup
from mpa_ray.observability.progress import say
from mpa_ray.phases.annotate import ListShards, index_and_annotate
from mpa_ray.phases.context import RunContext
from mpa_ray.phases.evaluate import predict, predict_group, predict_groups, prepare_benchmarks
from mpa_ray.phases.identify import engine_groups, identify_group, identify_student
from mpa_ray.phases.level import check_labelled_sets, level_student
from mpa_ray.phases.measured_models import measured_models, names_of_student
from mpa_ray.phases.model_groups import fall_back_to_single
from mpa_ray.phases.preflight import check_names, check_run, check_student, check_trainable
from mpa_ray.phases.repeated_work import NOTHING_AGAIN, Again
from mpa_ray.phases.resource_needs import check_resources_of, check_resources_of_student
from mpa_ray.pipeline.cluster_address import cluster_address
from mpa_ray.pipeline.machine import Need
from mpa_ray.pipeline.run_pass import Admission, record_error
from mpa_ray.run.commands import command_recorded
from mpa_ray.run.fingerprint import verdict_fingerprint
from mpa_ray.run.phase_record import PhaseKey
from mpa_ray.run.run import Run
from mpa_ray.sizing.models import num_parameters

_Check = Callable[[StudentConfig, int], None]
_CPUS_FOR_SMALL_TASKS = 1.0
"""CPUs of the cluster that phases leave free for the small tasks that fetch images and commit rows."""


def align(config: RunConfig, list_shards: ListShards = index_shards, again: Again = NOTHING_AGAIN) -> None:
    """Run all phases for all students, as many phases at a time as fit on the cluster.

    A failing student is reported; the others continue. The same command, run again, does what is still missing.

    Args:
        config: The run.
        list_shards: See `index_and_annotate`.
        again: Finished work to repeat.

    Raises:
        ConfigError: a setting that all students share is wrong, or the settings of every student are wrong.
        RunError: the teacher's pass or some students failed. The message names the students. The error is an
            `Unfinished` if every failure may be temporary.
    """
    failures: dict[str, Exception] = {}
    students = _check_students(config, failures, partial(_check_alone, object_store=config.object_store))
    check_names(config)
    check_run(config.model_copy(update={"students": students}))
    check_resources_of(config.model_copy(update={"students": students}), "align")
    _check_students(config, failures, partial(check_trainable, object_store=config.object_store))
    reading = RunContext.for_reading(config)
    _check_students(config, failures, lambda student, _: check_labelled_sets(reading, student))
    reading.check_benchmarks()
    context = RunContext.from_checked(config, again)
    with command_recorded(context.run.storage, "mpa-ray align"):
        _align_students(context, failures, list_shards)


def _align_students(context: RunContext[RunConfig], failures: dict[str, Exception], list_shards: ListShards) -> None:
    """Align the students whose settings are correct. `failures` holds the errors of the others."""
    config = context.configured
    context.check_moved_source()
    context.check_unchanged(["corpus", "annotations"])
    students = _check_students(config, failures, lambda s, _: context.check_unchanged(_datasets_of(s)))
    for name, error in failures.items():
        say(f"WARNING: {name} is left out: {error}")
        record_error(context.run, PhaseKey("identify", name), error)
    prepare_benchmarks(context)
    campaign = _Campaign(context, students, list_shards)
    try:
        failures |= campaign.run()
    except (ConfigError, RunError, OSError):
        # Write the report, which says how far the run has come and why it ended.
        score_and_report(context.with_finished_rounds())
        raise
    at_end = score_and_report(context.with_finished_rounds())
    if not failures and at_end:
        raise next(iter(at_end.values()))
    # If a student failed, its rows are missing, so a difference in the counts is no further error.
    failures |= {name: error for name, error in at_end.items() if not isinstance(error, CountsDiffer)}
    if failures:
        retry = "Run the same command again to retry."
        if not all(map(continues_at_once, failures.values())):
            retry = "Follow the advice in these messages, then run the same command again to retry."
        details = "; ".join(f"{name}: {error}" for name, error in failures.items())
        problem = f"{', '.join(failures)} failed; all other work is done. {retry} {details}"
        is_unfinished = all(isinstance(error, Unfinished | OSError) or may_pass(error) for error in failures.values())
        raise Unfinished(problem) if is_unfinished else RunError(problem)
    context.failures.check()


def _check_alone(student: StudentConfig, index: int, object_store: ObjectStoreConfig) -> None:
    check_student(student, index, object_store)
    check_resources_of_student(student, index)
    # Reading the identity of a model at s3:// also checks that the model exists.
    model_identity(student.model, object_store)


def _datasets_of(student: StudentConfig) -> list[str]:
    return [Run.verdicts_dir(student.name), *(Run.student_dir(student.name, arm) for arm in student.arms)]


def _check_students(config: RunConfig, failures: dict[str, Exception], check: _Check) -> list[StudentConfig]:
    """Run a check on each student that has not failed, and add its error to `failures`.

    Returns the students that have not failed. Raises the first failure if all have failed.
    """
    for index, student in enumerate(config.students):
        try:
            if student.name not in failures:
                check(student, index)
        except (ConfigError, OSError) as error:
            failures[student.name] = error
    others = [student for student in config.students if student.name not in failures]
    if not others:
        raise next(iter(failures.values()))
    return others


class _Campaign:
    """The threads of one run: one for the teacher, one for each student, and one for models that are only measured."""

    def __init__(
        self, context: RunContext[RunConfig], students: Sequence[StudentConfig], list_shards: ListShards
    ) -> None:
        """Prepare a campaign for the students that can be aligned."""
        self._context, self._students, self._list_shards = context, students, list_shards
        self._controller = AdmissionController(_capacity, context.config.max_concurrent_phases)
        self._annotated = ShardAnnouncements()
        self._groups = engine_groups(context, students)
        names = [student.name for student in students]
        self._identified = {name: threading.Event() for name in names}
        self._measured_together = {name: _Once() for name in names}
        self._trainings_checked = _Once()
        self._failures: dict[str, Exception] = {}
        self._teacher_error: BaseException | None = None
        self._access_lost: AccessLost | None = None

    def run(self) -> dict[str, Exception]:
        """Run all threads to their end. Returns errors by the name of the student or of the measured model.

        Raises the error of the teacher's pass, or AccessLost if any thread has lost access to a store.
        """
        threads = [_started(self._teach), _started(self._measure_others)]
        threads += [_started(self._align, student) for student in self._students]
        for thread in threads:
            while thread.is_alive():
                # A join without a timeout would block KeyboardInterrupt.
                thread.join(1.0)
        if self._teacher_error is not None:
            raise self._teacher_error
        if self._access_lost is not None:
            raise self._access_lost
        return self._failures

    def _teach(self) -> None:
        try:
            admission = self._admission(self._context.config.teacher, math.inf)
            index_and_annotate(self._context, admission, self._annotated.announce, self._list_shards)
        except BaseException as error:  # noqa: BLE001
            self._teacher_error = error
        finally:
            self._annotated.end(self._teacher_error)

    def _align(self, student: StudentConfig) -> None:
        try:
            size = float(num_parameters(student, self._context.config.object_store))
            admission = self._admission(student, size)
            to_train = self._admission_to_train(student, size)
            to_check = self._admission(student.model_copy(update={"num_replicas": 1}), size)
            same_model, group = self._same_model_and_group(student)
            self._identify(student, same_model, group, admission)
            for arm in student.arms:
                level_student(self._context, student, arm, to_train, to_check)
                self._measure(self._context, MeasuredModel(student.name, arm), admission)
            self._measure_before(student, group, admission)
            for number in range(2, student.rounds + 1):
                self._align_again(student, number, to_train, admission, to_check)
        except Exception as error:  # noqa: BLE001
            if error is not self._teacher_error:
                self._record(student.name, error, f"{student.name} failed, but the other students continue")
        finally:
            self._identified[student.name].set()

    def _align_again(
        self, student: StudentConfig, number: int, to_train: Admission, admission: Admission, to_check: Admission
    ) -> None:
        """Do a later round: identify with the trained student, train it again, and measure it before and after."""
        context = self._context.with_finished_rounds()
        again = next(s for s in context.config.students if s.name == student.name_in(number))
        identify_student(context, again, admission)
        level_student(context, again, "parity", to_train, to_check)
        for model in MeasuredModel.all_of(again.name, ["parity"]):
            self._measure(context, model, admission)

    def _measure(self, context: RunContext[RunConfig], model: MeasuredModel, admission: Admission) -> None:
        if context.config.evaluate is not None:
            predict(context, model.name, admission)

    def _identify(self, student: StudentConfig, same_model: str, group: EngineGroup, admission: Admission) -> None:
        """Write a student's verdicts and D_PI.

        The first student of a group runs one pass for all students of the group. If an earlier student has the same
        model, the verdicts of that student are copied.
        """
        leader = group.names[0]
        if leader == student.name:
            with fall_back_to_single(group, lambda: self._teacher_error):
                identify_group(self._context, group, self._annotated, admission)
        for earlier in {leader, same_model} - {student.name}:
            self._identified[earlier].wait()
        self._wait_for_teacher()
        identify_student(self._context, student, admission)
        self._identified[student.name].set()

    def _wait_for_teacher(self) -> None:
        """Wait until all images are annotated. Raises the error that ended the teacher's pass."""
        for _ in self._annotated:
            continue

    def _measure_before(self, student: StudentConfig, group: EngineGroup, admission: Admission) -> None:
        """Measure a student before alignment. The first call for a group measures all students of the group."""
        if self._context.config.evaluate is not None and len(group.names) > 1:
            adapters = {MeasuredModel(name, None).name: adapter for name, adapter in group.adapters.items()}
            shared = EngineGroup(group.base, adapters)
            with self._measured_together[group.names[0]] as is_first:
                if is_first:
                    with fall_back_to_single(shared):
                        predict_group(self._context, shared, admission)
        self._measure(self._context, MeasuredModel(student.name, None), admission)

    def _same_model_and_group(self, student: StudentConfig) -> tuple[str, EngineGroup]:
        """Return the name of the first student with the same model as this student, and the first student's group."""
        fingerprint_of = partial(verdict_fingerprint, self._context.config, self._context.task)
        fingerprint = fingerprint_of(student)
        first = next(s for s in self._students if fingerprint_of(s) == fingerprint)
        return first.name, next(group for group in self._groups if first.name in group.names)

    def _measure_others(self) -> None:
        context = self._context
        if context.config.evaluate is None:
            return
        try:
            # No phase depends on these scores, so measuring these models must not delay the teacher.
            self._wait_for_teacher()
            models = measured_models(context)
        except Exception as error:  # noqa: BLE001
            if error is not self._teacher_error:
                self._failures["measuring models"] = error
            return
        of_students = {name for student in context.config.students for name in names_of_student(student)}
        others = {name: model for name, model in models.items() if name not in of_students}
        try:
            predict_groups(context, others, lambda group: self._admission(group.base, 0.0))
        except Exception as error:  # noqa: BLE001
            # The model that caused the error fails again below, in a separate pass.
            say(f"WARNING: models could not be measured in a shared engine, so each gets a separate engine: {error}")
        for name in others:
            try:
                predict(context, name, self._admission(models[name], 0.0))
            except Exception as error:  # noqa: BLE001
                # Without "measuring", the name "teacher" would suggest that the annotation has failed.
                self._record(
                    f"measuring {name}", error, f"{name} could not be measured, but the other models are still measured"
                )

    def _admission(self, model: ModelConfig, size: float) -> Admission:
        need = Resources(model.num_replicas * model.cpus_per_replica, model.num_replicas * model.gpus_per_replica)
        return self._admission_for(need, size)

    def _admission_to_train(self, student: StudentConfig, size: float) -> Admission:
        level = student.level
        # Without a GPU, training uses all cores, regardless of what Ray reserves.
        num_cpus = level.cpus_per_worker if level.gpus_per_worker else math.inf
        need = Resources(level.num_workers * num_cpus, level.num_workers * level.gpus_per_worker)
        return self._admission_for(need, size)

    def _admission_for(self, need: Resources, size: float) -> Callable[[], AbstractContextManager[None]]:
        return lambda: self._admitted(need, size)

    @contextmanager
    def _admitted(self, need: Resources, size: float) -> Iterator[None]:
        with self._trainings_checked as is_first:
            if is_first:
                self._check_trainings()
        with self._controller.admitted(need, size):
            if self._access_lost is not None:
                # Running phases end at their next request to the store. Start no further phase.
                raise self._access_lost
            yield

    def _check_trainings(self) -> None:
        """Before the first pass, check that the cluster can run the training, which begins only after hours of passes.

        If the command starts Ray on this machine, `align` has already checked the machine.
        """
        if cluster_address() is None:
            return
        from mpa_ray.pipeline.cluster import check_resources, start_ray

        start_ray()
        for student in self._students:
            branch = self._context.run.branch_of_student(student.name)
            check_resources(Need.of_training(student.level, f"{branch}.level"))

    def _record(self, name: str, error: Exception, warning: str) -> None:
        """Record the error of a thread and print a warning. An AccessLost ends the whole command instead."""
        if isinstance(error, AccessLost):
            self._access_lost = self._access_lost or error
            return
        self._failures[name] = error
        say(f"WARNING: {warning}: {error}")


class _Once:
    """A lock. `with lock as is_first` sets `is_first` to True the first time, and to False from then on."""

    def __init__(self) -> None:
        self._lock, self._is_entered = threading.Lock(), False

    def __enter__(self) -> bool:
        self._lock.acquire()
        is_first, self._is_entered = not self._is_entered, True
        return is_first

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def _started(target: Callable[..., None], *args: object) -> threading.Thread:
    thread = threading.Thread(target=target, args=args, daemon=True)
    thread.start()
    return thread


def _capacity() -> Resources:
    # Ray takes a second to import, and a finished campaign does not need it.
    from mpa_ray.pipeline.cluster import cluster_resources

    num_cpus, num_gpus = cluster_resources()
    return Resources(num_cpus - _CPUS_FOR_SMALL_TASKS, num_gpus)
