"""Kills of every kind during a run, on a separate Ray cluster; this process does not start Ray."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.chaos import plan, run_trial, run_undisturbed
from benchmarks.chaos_results import Fault
from benchmarks.chaos_testbed import SETTINGS, open_testbed
from benchmarks.faulty_proxy import WebFault

SEED = 11
KILLS_PER_TRIAL, NUM_TRIALS = 4, 1


@pytest.mark.timeout(600)
def test_kills_lose_and_double_nothing(tmp_path: Path) -> None:
    setting = replace(SETTINGS["scripted"], num_images=60)
    with open_testbed(setting, SEED, web_faults=0.1, folder=tmp_path) as testbed:
        reference = run_undisturbed(testbed)
        plans = [plan(SEED, number, reference.num_shards) for number in range(KILLS_PER_TRIAL * NUM_TRIALS)]
        trials = [
            run_trial(testbed, number, plans[number * KILLS_PER_TRIAL : (number + 1) * KILLS_PER_TRIAL], reference)
            for number in range(NUM_TRIALS)
        ]
        injected = testbed.proxy.counts()["injected"]
    report = "\n".join(map(str, trials))
    kills = [kill for trial in trials for kill in trial.kills]
    assert len(kills) == len(plans), report
    assert {kill.fault for kill in kills} == set(Fault)
    assert {fault for fault in WebFault if any(key.startswith(f"{fault} ") for key in injected)} == set(WebFault)
    for trial in trials:
        assert (trial.num_lost, trial.num_doubled, trial.problems) == (0, 0, []), report
        assert (trial.num_differing, trial.num_needless) == (0, 0), report
        assert trial.errors == [], report
        assert trial.num_restarts == trial.faults.count(Fault.DRIVER), report
