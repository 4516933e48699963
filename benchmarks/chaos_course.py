"""The course of a trial: the same command is repeated until it finishes, while faults happen and a person helps."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.chaos_drivers import DifferentDrivers
from benchmarks.chaos_faults import Driver, Expectation, Fault, Injection, Scene
from benchmarks.chaos_results import Ended

MAX_RESTARTS = 6


@dataclass
class Course:
    """What happened in a trial."""

    injections: list[Injection] = field(default_factory=list)
    ended: list[Ended] = field(default_factory=list)
    num_restarts: int = 0
    is_finished: bool = False


def drive_to_the_end(scene: Scene, faults: Sequence[Fault], jobs: Sequence[str], first: int = 0) -> Course:
    """Repeat the same command until it finishes, or ends with a line that does not say what a person must do.

    Args:
        scene: The trial.
        faults: The faults to inject.
        jobs: The jobs that the command runs.
        first: The number of drivers before.
    """
    waiting = list(faults)
    course = Course()
    try:
        for course.num_restarts in range(first, first + MAX_RESTARTS + 1):
            course.is_finished, goes_on = _drive_once(scene, faults, jobs, waiting, course)
            if not goes_on:
                break
        _wait_for_others(scene, faults, course)
    finally:
        for other in scene.others:
            other.process.kill()
            other.process.wait()
        scene.others.clear()
    return course


def _drive_once(
    scene: Scene, faults: Sequence[Fault], jobs: Sequence[str], waiting: list[Fault], course: Course
) -> tuple[bool, bool]:
    """Run the command once. Returns whether it finished, and whether to repeat it."""
    name = f"driver-{course.num_restarts}"
    errors = scene.folder / f"{name}.err"
    with scene.testbed.driver(scene.folder, name, jobs) as driver:
        has_hung = _inject_until_it_ends(scene, driver, waiting, course)
    if has_hung:
        course.ended.append(Ended(-1, f"hung after {_last_line(errors)!r}", None))
        return False, True
    if driver.returncode > 0:
        course.ended.append(_acted(scene, faults, driver.returncode, errors))
        return False, course.ended[-1].action is not None
    return driver.returncode == 0, driver.returncode != 0


def _inject_until_it_ends(scene: Scene, driver: Driver, waiting: list[Fault], course: Course) -> bool:
    """Returns whether the driver has hung."""
    deadline = time.monotonic() + scene.testbed.setting.driver_timeout_s
    while driver.poll() is None and time.monotonic() < deadline:
        for fault in list(waiting):
            if injection := fault.inject(scene, driver):
                course.injections.append(injection)
                waiting.remove(fault)
        time.sleep(0.05)
    return driver.poll() is None


def _acted(scene: Scene, faults: Sequence[Fault], code: int, errors: Path) -> Ended:
    """What a person does after a driver that failed."""
    line = _last_line(errors)
    if "Traceback" in errors.read_text():
        return Ended(code, f"a traceback: {line}", None)
    actions = [action for fault in faults if (action := fault.act(scene, line)) is not None]
    if not actions and line.endswith("Run the same command again to continue."):
        actions = ["run the same command again"]
    is_expected = any(fault.expects is Expectation.PERSON_ACTS for fault in faults)
    return Ended(code, line, actions[0] if actions else None, is_expected)


def _last_line(log: Path) -> str:
    return next(reversed(log.read_text().splitlines()), "")


def _wait_for_others(scene: Scene, faults: Sequence[Fault], course: Course) -> None:
    """Wait for second drivers, which have to finish, or to be refused if their settings differ."""
    refusing = [fault for fault in faults if isinstance(fault, DifferentDrivers)]
    for other in scene.others:
        other.process.wait(timeout=scene.testbed.setting.driver_timeout_s)
        if other.process.returncode == 0:
            continue
        line = _last_line(other.errors)
        is_refused = other.process.returncode == 2 and any(fault.is_refused(line) for fault in refusing)
        action = "undo the change of a setting" if is_refused else None
        if line.endswith("Run the same command again to continue."):
            action = "run the same command again"
        course.ended.append(Ended(other.process.returncode, line, action, is_expected=bool(refusing)))
