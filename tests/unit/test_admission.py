"""Concurrent phases of a campaign: when each is admitted, and shards that are announced while other phases wait for
them."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable

import pytest

from mpa_ray.campaign.admission import _MAX_OVERTAKEN, AdmissionController, Resources
from mpa_ray.campaign.announcements import ShardAnnouncements


def eventually(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.005)


class Phases:
    """Phases that run in threads until `end` is called."""

    def __init__(self, controller: AdmissionController) -> None:
        self._controller = controller
        self.running: list[str] = []
        self._ends: dict[str, threading.Event] = {}
        self._threads: list[threading.Thread] = []

    def begin(self, name: str, need: Resources, size: float = 0.0) -> None:
        self._ends[name] = threading.Event()
        self._threads.append(threading.Thread(target=self._run, args=(name, need, size), daemon=True))
        self._threads[-1].start()

    def _run(self, name: str, need: Resources, size: float) -> None:
        with self._controller.admitted(need, size):
            self.running.append(name)
            self._ends[name].wait()
            self.running.remove(name)

    def end(self, *names: str) -> None:
        for name in names:
            self._ends[name].set()

    def expect_running(self, *names: str) -> None:
        """Exactly these phases run soon, and no other joins them."""
        eventually(lambda: set(self.running) == set(names))
        time.sleep(0.05)
        assert set(self.running) == set(names)


def controller(num_cpus: float, num_gpus: float = 0.0) -> AdmissionController:
    return AdmissionController(lambda: Resources(num_cpus, num_gpus))


def test_as_many_phases_run_as_fit() -> None:
    phases = Phases(controller(8, 2))
    for name in ("a", "b", "c"):
        phases.begin(name, Resources(1, 1))
        eventually(lambda: len(phases.running) == min(2, len(phases._ends)))
    phases.expect_running("a", "b")
    phases.end("a")
    phases.expect_running("b", "c")
    phases.end("b", "c")
    phases.expect_running()


def test_the_largest_phase_that_fits_is_next() -> None:
    phases = Phases(controller(8, 2))
    phases.begin("first", Resources(1, 2))
    phases.expect_running("first")
    phases.begin("small", Resources(1, 1), 1.0)
    phases.begin("large", Resources(1, 1), 5.0)
    phases.begin("huge", Resources(1, 2), 3.0)
    time.sleep(0.05)
    phases.end("first")
    phases.expect_running("large", "small")
    phases.end("large", "small")
    phases.expect_running("huge")
    phases.end("huge")


def test_a_phase_that_needs_more_than_the_cluster_starts_when_no_other_runs() -> None:
    phases = Phases(controller(2))
    phases.begin("other", Resources(1))
    phases.expect_running("other")
    phases.begin("giant", Resources(1, 8))
    phases.expect_running("other")
    phases.end("other")
    phases.expect_running("giant")
    phases.begin("third", Resources(1))
    phases.expect_running("giant", "third")
    phases.end("giant", "third")
    phases.expect_running()


@pytest.mark.parametrize("need", [Resources(8, 2), Resources(math.inf)])
def test_a_wide_phase_starts_although_narrow_ones_keep_arriving(need: Resources) -> None:
    """At any time a narrow phase runs and another waits, so the cluster is never empty."""
    phases = Phases(controller(8, 2))
    phases.begin("narrow 0", Resources(1, 1))
    phases.expect_running("narrow 0")
    phases.begin("wide", need, size=math.inf)
    for number in range(1, _MAX_OVERTAKEN + 1):
        phases.begin(f"narrow {number}", Resources(1, 1))
        eventually(lambda number=number: f"narrow {number}" in phases.running)  # type: ignore[misc]
        phases.end(f"narrow {number - 1}")
    phases.begin("last", Resources(1, 1))
    phases.expect_running(f"narrow {_MAX_OVERTAKEN}")
    phases.end(f"narrow {_MAX_OVERTAKEN}")
    phases.expect_running("wide")
    phases.end("wide")
    phases.expect_running("last")
    phases.end("last")


def test_a_small_phase_starts_although_larger_ones_keep_arriving() -> None:
    phases = Phases(AdmissionController(lambda: Resources(0), max_running=1))
    phases.begin("0", Resources(1), 2.0)
    phases.expect_running("0")
    phases.begin("small", Resources(1), 1.0)
    for number in range(1, _MAX_OVERTAKEN + 1):
        phases.begin(str(number), Resources(1), 2.0)
        time.sleep(0.02)
        phases.end(str(number - 1))
        eventually(lambda number=number: phases.running == [str(number)])  # type: ignore[misc]
    phases.begin("last", Resources(1), 2.0)
    time.sleep(0.02)
    phases.end(str(_MAX_OVERTAKEN))
    phases.expect_running("small")
    phases.end("small")
    phases.expect_running("last")
    phases.end("last")


def test_a_phase_that_takes_the_whole_cluster_runs_alone() -> None:
    phases = Phases(controller(2))
    phases.begin("all", Resources(math.inf))
    phases.expect_running("all")
    phases.begin("other", Resources(1))
    phases.expect_running("all")
    phases.end("all")
    phases.expect_running("other")
    phases.end("other")
    phases.expect_running()


def test_a_maximum_number_of_phases_replaces_the_cluster_resources() -> None:
    phases = Phases(AdmissionController(lambda: Resources(0), max_running=2))
    phases.begin("a", Resources(8, 8))
    phases.begin("b", Resources(8, 8))
    phases.expect_running("a", "b")
    phases.begin("c", Resources(1))
    phases.expect_running("a", "b")
    phases.end("a")
    phases.expect_running("b", "c")
    phases.end("b", "c")


def test_a_waiting_phase_is_admitted_when_a_node_joins() -> None:
    capacity = [Resources(1)]
    phases = Phases(AdmissionController(lambda: capacity[0], poll_s=0.01))
    phases.begin("a", Resources(1))
    phases.begin("b", Resources(1))
    eventually(lambda: len(phases.running) == 1)
    capacity[0] = Resources(2)
    phases.expect_running("a", "b")
    phases.end("a", "b")


def test_a_failing_phase_frees_its_resources() -> None:
    one_cpu = controller(1)
    with pytest.raises(ValueError, match="failed"), one_cpu.admitted(Resources(1)):
        raise ValueError("failed")
    with one_cpu.admitted(Resources(1)):
        pass


def start_following(announcements: Iterable[str], shards: list[str], errors: list[str]) -> threading.Thread:
    """Collect the announced shards, or the error, in a thread."""

    def follow() -> None:
        try:
            shards.extend(announcements)
        except RuntimeError as error:
            errors.append(str(error))

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    return thread


def test_every_follower_gets_every_shard_in_order() -> None:
    announcements = ShardAnnouncements()
    announcements.announce("0")
    shards: list[list[str]] = [[], []]
    first = start_following(announcements, shards[0], [])
    announcements.announce("1")
    announcements.end()
    second = start_following(announcements, shards[1], [])
    for thread in (first, second):
        thread.join(5)
    assert shards == [["0", "1"], ["0", "1"]]


def test_followers_raise_the_error_that_ended_the_announcements() -> None:
    announcements = ShardAnnouncements()
    shards: list[str] = []
    errors: list[str] = []
    thread = start_following(announcements, shards, errors)
    announcements.announce("0")
    announcements.end(RuntimeError("the teacher failed"))
    thread.join(5)
    assert (shards, errors) == (["0"], ["the teacher failed"])
