"""Many students in one job: the teacher works once, and every student goes its way as soon as there is work for it."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial

from mpa_ray.campaign.admission import AdmissionController, Resources, ShardAnnouncements
from mpa_ray.config import ModelConfig, ObjectStoreConfig, RunConfig, StudentConfig, measured_as
from mpa_ray.errors import ConfigError, RunError
from mpa_ray.models.checkpoints import model_identity, model_settings
from mpa_ray.models.shared_engines import EngineGroup
from mpa_ray.observability.progress import say
from mpa_ray.phases import steps
from mpa_ray.phases.preflight import check_run, check_student, task_of
from mpa_ray.pipeline.run_pass import Admission
from mpa_ray.run import fingerprint
from mpa_ray.run.run import Run
from mpa_ray.sizing.architecture import architecture_of

_FOR_SMALL_TASKS = 1.0
"""CPUs of the cluster that no step takes: they fetch images and commit rows."""


def align(config: RunConfig) -> None:
    """Everything for every student, side by side as far as the cluster's resources go.

    A student that fails leaves the others alone; the same command then does what is missing of it.

    Raises:
        ConfigError: something is wrong that concerns all students.
        RunError: the teacher's pass failed, or some students did; names them.
    """
    failures = _students_with_wrong_settings(config)
    sound = [student for student in config.students if student.name not in failures]
    if not sound:
        raise next(iter(failures.values()))
    check_run(config.model_copy(update={"students": sound}))
    # Of the others nothing more can be said, and no step of a sound one is to fail of them.
    steps.check_once(config, is_sound=True)
    for name, problem in failures.items():
        say(f"WARNING: {name} is left out: {problem}")
    steps.lay_out_benchmarks(config)
    failures |= _Campaign(config, sound).run()
    # Later rounds' students, too, are looked at already as far as they have to be.
    steps.check_once(steps.with_rounds(config), is_sound=True)
    try:
        steps.evaluate(config, score_only=True)
        steps.report(config)
    except (ConfigError, RunError) as error:
        if not failures:
            raise
        failures["report"] = error
    if failures:
        told = "; ".join(f"{name}: {error}" for name, error in failures.items())
        raise RunError(f"{', '.join(failures)} failed, what is left is done. The same command tries again. {told}")


def _students_with_wrong_settings(config: RunConfig) -> dict[str, Exception]:
    found: dict[str, Exception] = {}
    for index, student in enumerate(config.students):
        try:
            check_student(student, index, config.object_store)
            # What lies at s3:// is looked at where its identity is asked for.
            model_identity(student.model, config.object_store)
        except (ConfigError, OSError) as error:
            found[student.name] = error
    return found


class _Campaign:
    """The threads of one run: the teacher's, one for each student, and one for models that are only measured."""

    def __init__(self, config: RunConfig, students: Sequence[StudentConfig]) -> None:
        """Of the run's students, those that can be aligned."""
        self._config, self._students = config, students
        self._gate = AdmissionController(_capacity, config.max_concurrent_phases)
        self._annotated = ShardAnnouncements()
        self._engines = steps.identified_together(config, students)
        names = [student.name for student in students]
        self._identified = {name: threading.Event() for name in names}
        self._measured_together = {name: _Once() for name in names}
        self._failures: dict[str, Exception] = {}
        self._teacher_failed: BaseException | None = None

    def run(self) -> dict[str, Exception]:
        """What students failed of. Raises what the teacher's pass failed of."""
        threads = [_started(self._teach), _started(self._measure_others)]
        threads += [_started(self._align, student) for student in self._students]
        for thread in threads:
            while thread.is_alive():
                # A thread that is waited for without an end would hold up an interrupt.
                thread.join(1.0)
        if self._teacher_failed is not None:
            raise self._teacher_failed
        return self._failures

    def _teach(self) -> None:
        teacher = self._config.teacher
        try:
            steps.index_and_annotate(self._config, self._admission(teacher, math.inf), self._annotated.announce)
        except BaseException as error:  # noqa: BLE001
            self._teacher_failed = error
        finally:
            self._annotated.end(self._teacher_failed)

    def _align(self, student: StudentConfig) -> None:
        try:
            size = _size(student, self._config.object_store)
            admission = self._admission(student, size)
            first, engine = self._asked_as(student)
            to_check = self._admission(student.model_copy(update={"num_replicas": 1}), size)
            self._identify(student, first, engine, admission)
            for arm in student.arms:
                steps.level_student(self._config, student, arm, self._admission_to_train(student, size), to_check)
                self._measure(student, measured_as(arm), admission)
            self._measure_before(student, engine, admission)
            for number in range(2, student.rounds + 1):
                self._align_again(student, number, self._admission_to_train(student, size), admission, to_check)
        except Exception as error:  # noqa: BLE001
            if error is not self._teacher_failed:
                self._failures[student.name] = error
                say(f"WARNING: {student.name} failed, the others go on: {error}")
        finally:
            self._identified[student.name].set()

    def _align_again(
        self, student: StudentConfig, number: int, to_train: Admission, admission: Admission, to_check: Admission
    ) -> None:
        """A later round: what the student answers now, a training from there, and its scores."""
        config = steps.with_rounds(self._config)
        # What may be wrong with other students is known.
        steps.check_once(config, is_sound=True)
        again = next(s for s in config.students if s.name == student.name_in(number))
        steps.identify_student(config, again, admission)
        steps.level_student(config, again, "parity", to_train, to_check)
        for when in ("before", "after"):
            self._measure(again, when, admission, config)

    def _measure(
        self, student: StudentConfig, when: str, admission: Admission, config: RunConfig | None = None
    ) -> None:
        """Whatever the run is measured on; `config` is the run's unless another is given."""
        if self._config.evaluate is not None:
            steps.predict(config or self._config, f"{student.name}.{when}", admission)

    def _identify(self, student: StudentConfig, first: str, engine: EngineGroup, admission: Admission) -> None:
        """The first student of an engine has it ask all of them; the others, and its equals, take the answers over."""
        leader = next(iter(engine.adapters))
        if leader == student.name:
            with steps.fall_back_to_single(engine, lambda: self._teacher_failed):
                steps.identify_together(self._config, engine, self._annotated, admission)
        for earlier in {leader, first} - {student.name}:
            self._identified[earlier].wait()
        for _ in self._annotated:
            # To its end, or to what ended it.
            continue
        steps.identify_student(self._config, student, admission)
        self._identified[student.name].set()

    def _measure_before(self, student: StudentConfig, engine: EngineGroup, admission: Admission) -> None:
        """Whichever of an engine's students comes here first has it answer for all of them."""
        if self._config.evaluate is not None and len(engine.adapters) > 1:
            together = EngineGroup(
                engine.base, {f"{name}.before": adapter for name, adapter in engine.adapters.items()}
            )
            with self._measured_together[next(iter(engine.adapters))] as is_first:
                if is_first:
                    with steps.fall_back_to_single(together):
                        steps.predict_together(self._config, together, admission)
        self._measure(student, "before", admission)

    def _asked_as(self, student: StudentConfig) -> tuple[str, EngineGroup]:
        """The first student that is the same model, perhaps itself, and the engine that asks it."""
        fingerprint_of = partial(fingerprint.verdict_fingerprint, self._config, task_of(self._config))
        wanted = fingerprint_of(student)
        first = next(s for s in self._students if fingerprint_of(s) == wanted)
        return first.name, next(engine for engine in self._engines if first.name in engine.adapters)

    def _measure_others(self) -> None:
        if self._config.evaluate is None:
            return
        students = self._config.students
        of_students = {f"{s.name}.{when}" for s in students for when in ("before", *map(measured_as, s.arms))}
        try:
            # The teacher has to be through: nothing waits for its scores.
            for _ in self._annotated:
                continue
            run = Run.open(self._config.run_dir, self._config.object_store)
            models = steps.models_to_measure(self._config, run)
        except Exception as error:  # noqa: BLE001
            if error is not self._teacher_failed:
                self._failures["evaluate"] = error
            return
        others = {name: model for name, model in models.items() if name not in of_students}
        try:
            steps.predict_all_together(self._config, others, lambda engine: self._admission(engine.base, 0.0))
        except Exception as error:  # noqa: BLE001
            # What it is shows where each is measured by itself.
            say(f"WARNING: models to measure: {error}")
        for name in others:
            try:
                steps.predict(self._config, name, self._admission(models[name], 0.0))
            except Exception as error:  # noqa: BLE001
                self._failures[name] = error
                say(f"WARNING: {name} could not be measured, the others go on: {error}")

    def _admission(self, model: ModelConfig, size: float) -> Admission:
        return self._entrance(
            Resources(model.num_replicas * model.cpus_per_replica, model.num_replicas * model.gpus_per_replica), size
        )

    def _admission_to_train(self, student: StudentConfig, size: float) -> Admission:
        level = student.level
        # Without a GPU training computes on all cores there are, whatever Ray has been told.
        num_cpus = level.cpus_per_worker if level.gpus_per_worker else math.inf
        return self._entrance(Resources(level.num_workers * num_cpus, level.num_workers * level.gpus_per_worker), size)

    def _entrance(self, need: Resources, size: float) -> Callable[[], AbstractContextManager[None]]:
        return lambda: self._gate.admitted(need, size)


class _Once:
    """Entered by one thread at a time, which learns whether it is the first."""

    def __init__(self) -> None:
        self._lock, self._is_entered = threading.Lock(), False

    def __enter__(self) -> bool:
        self._lock.acquire()
        is_first, self._is_entered = not self._is_entered, True
        return is_first

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def _size(student: StudentConfig, object_store: ObjectStoreConfig) -> float:
    """How long its steps take beside those of other students, by its parameters; 0 where nothing tells."""
    if student.engine.kind == "scripted":
        return 0.0
    try:
        return float(architecture_of(model_settings(student.model, object_store), student.model).total)
    except ConfigError:
        # A family whose layers we cannot count is aligned all the same.
        return 0.0


def _started(work: Callable[..., None], *arguments: object) -> threading.Thread:
    thread = threading.Thread(target=work, args=arguments, daemon=True)
    thread.start()
    return thread


def _capacity() -> Resources:
    from mpa_ray.pipeline import graph as flow

    num_cpus, num_gpus = flow.cluster_resources()
    return Resources(num_cpus - _FOR_SMALL_TASKS, num_gpus)
