"""Faults of every kind during a run, on a separate Ray cluster; this process does not start Ray."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest

from benchmarks.chaos import KILLS, SCHEDULES, plan
from benchmarks.chaos_driver import CONFIG, drive
from benchmarks.chaos_faults import DriverKill, Fault, Scene
from benchmarks.chaos_testbed import SETTINGS, Testbed, open_testbed
from benchmarks.chaos_trial import Trials
from benchmarks.faulty_proxy import WebFault
from tests.local_stream import without_ray

SEED = 11
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def testbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Testbed]:
    setting = replace(SETTINGS["scripted"], num_images=60)
    with open_testbed(setting, SEED, web_faults=0.1, folder=tmp_path_factory.mktemp("chaos")) as testbed:
        yield testbed


@pytest.fixture(scope="module")
def trials(testbed: Testbed) -> Trials:
    return Trials(testbed, finish_in_this_process)


def finish_in_this_process(scene: Scene, jobs: Sequence[str]) -> None:
    """An undisturbed run without Ray and waiting times, which has the same results."""
    config = scene.folder / CONFIG
    tree = json.loads(config.read_text())
    for model in (tree["teacher"], *tree["students"]):
        model["engine"]["latency_s"] = 0.0
    config.write_text(json.dumps(tree))
    with pytest.MonkeyPatch.context() as patch:
        without_ray(patch)
        drive(config, jobs)


def test_kills_lose_and_double_nothing(trials: Trials, testbed: Testbed) -> None:
    faults = [plan(SEED, number, trials.reference, KILLS) for number in range(len(KILLS))]
    trial = trials.run(0, faults)
    injected = testbed.proxy.counts()["injected"]
    assert sorted(fault.kind for fault in trial.faults) == sorted(kind.kind for kind in KILLS), trial
    assert {fault for fault in WebFault if any(key.startswith(f"{fault} ") for key in injected)} == set(WebFault)
    assert trial.is_good, trial
    assert trial.ended == [], trial
    assert trial.num_restarts == [type(fault) for fault in faults].count(DriverKill), trial


OTHERS = [kind for kind in dict.fromkeys(SCHEDULES["scripted"]) if kind not in KILLS]


@pytest.mark.long
@pytest.mark.parametrize("kind", OTHERS, ids=lambda kind: kind.__name__)
def test_other_faults_lose_and_double_nothing(kind: type[Fault], trials: Trials) -> None:
    number = 1 + OTHERS.index(kind)
    trial = trials.run(number, [plan(SEED, number, trials.reference, (kind,))])
    assert trial.faults, trial
    assert trial.is_good, trial
