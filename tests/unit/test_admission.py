"""Steps side by side: who is let in when, and shards that become known while others follow."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable

import pytest

from mpa_ray.campaign.admission import AdmissionController, Resources
from mpa_ray.campaign.announcements import ShardAnnouncements


def eventually(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.005)


class Steps:
    """Steps that run until they are told to end."""

    def __init__(self, gate: AdmissionController) -> None:
        self._gate = gate
        self.running: list[str] = []
        self._ends: dict[str, threading.Event] = {}
        self._threads: list[threading.Thread] = []

    def begin(self, name: str, need: Resources, size: float = 0.0) -> None:
        self._ends[name] = threading.Event()
        self._threads.append(threading.Thread(target=self._run, args=(name, need, size), daemon=True))
        self._threads[-1].start()

    def _run(self, name: str, need: Resources, size: float) -> None:
        with self._gate.admitted(need, size):
            self.running.append(name)
            self._ends[name].wait()
            self.running.remove(name)

    def end(self, *names: str) -> None:
        for name in names:
            self._ends[name].set()

    def run_soon(self, *names: str) -> None:
        """Exactly these run, and go on alone."""
        eventually(lambda: set(self.running) == set(names))
        time.sleep(0.05)
        assert set(self.running) == set(names)


def gate(num_cpus: float, num_gpus: float = 0.0) -> AdmissionController:
    return AdmissionController(lambda: Resources(num_cpus, num_gpus))


def test_as_many_run_as_fit() -> None:
    steps = Steps(gate(8, 2))
    for name in ("a", "b", "c"):
        steps.begin(name, Resources(1, 1))
        eventually(lambda: len(steps.running) == min(2, len(steps._ends)))
    steps.run_soon("a", "b")
    steps.end("a")
    steps.run_soon("b", "c")
    steps.end("b", "c")
    steps.run_soon()


def test_the_longest_that_fits_is_next() -> None:
    steps = Steps(gate(8, 2))
    steps.begin("first", Resources(1, 2))
    steps.run_soon("first")
    steps.begin("small", Resources(1, 1), 1.0)
    steps.begin("large", Resources(1, 1), 5.0)
    steps.begin("huge", Resources(1, 2), 3.0)
    time.sleep(0.05)
    steps.end("first")
    steps.run_soon("large", "small")
    steps.end("large", "small")
    steps.run_soon("huge")
    steps.end("huge")


def test_what_is_more_than_there_is_runs_alone() -> None:
    steps = Steps(gate(2))
    steps.begin("other", Resources(1))
    steps.run_soon("other")
    steps.begin("giant", Resources(1, 8))
    steps.run_soon("other")
    steps.end("other")
    steps.run_soon("giant")
    steps.begin("third", Resources(1))
    steps.run_soon("giant", "third")
    steps.end("giant", "third")
    steps.run_soon()


def test_what_takes_everything_runs_alone_and_leaves_everything() -> None:
    steps = Steps(gate(2))
    steps.begin("all", Resources(math.inf))
    steps.run_soon("all")
    steps.begin("other", Resources(1))
    steps.run_soon("all")
    steps.end("all")
    steps.run_soon("other")
    steps.end("other")
    steps.run_soon()


def test_a_number_of_steps_may_stand_for_what_the_cluster_has() -> None:
    steps = Steps(AdmissionController(lambda: Resources(0), max_running=2))
    steps.begin("a", Resources(8, 8))
    steps.begin("b", Resources(8, 8))
    steps.run_soon("a", "b")
    steps.begin("c", Resources(1))
    steps.run_soon("a", "b")
    steps.end("a")
    steps.run_soon("b", "c")
    steps.end("b", "c")


def test_nodes_that_join_let_more_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mpa_ray.campaign.admission._POLL_S", 0.01)
    there = [Resources(1)]
    steps = Steps(AdmissionController(lambda: there[0]))
    steps.begin("a", Resources(1))
    steps.begin("b", Resources(1))
    eventually(lambda: len(steps.running) == 1)
    there[0] = Resources(2)
    steps.run_soon("a", "b")
    steps.end("a", "b")


def test_a_step_that_fails_gives_its_place_back() -> None:
    one = gate(1)
    with pytest.raises(ValueError, match="gone"), one.admitted(Resources(1)):
        raise ValueError("gone")
    with one.admitted(Resources(1)):
        pass


def followed(announced: Iterable[str], found: list[str], errors: list[str]) -> threading.Thread:
    def follow() -> None:
        try:
            found.extend(announced)
        except RuntimeError as error:
            errors.append(str(error))

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    return thread


def test_every_follower_gets_every_shard_in_order() -> None:
    announced = ShardAnnouncements()
    announced.announce("0")
    found: list[list[str]] = [[], []]
    first = followed(announced, found[0], [])
    announced.announce("1")
    announced.end()
    second = followed(announced, found[1], [])
    for thread in (first, second):
        thread.join(5)
    assert found == [["0", "1"], ["0", "1"]]


def test_what_ended_the_announcements_ends_their_followers() -> None:
    announced = ShardAnnouncements()
    found: list[str] = []
    errors: list[str] = []
    thread = followed(announced, found, errors)
    announced.announce("0")
    announced.end(RuntimeError("the teacher is gone"))
    thread.join(5)
    assert (found, errors) == (["0"], ["the teacher is gone"])
