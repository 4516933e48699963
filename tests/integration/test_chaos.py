"""Kills of every kind while images stream: on a cluster of its own, with no Ray in this process."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.chaos import SETTINGS, Fault, open_arena, plan, run_trial, run_undisturbed
from benchmarks.faulty_proxy import WebFault

SEED = 11
KILLS_PER_TRIAL, NUM_TRIALS = 2, 3


@pytest.mark.timeout(600)
def test_kills_lose_and_double_nothing(tmp_path: Path) -> None:
    setting = replace(SETTINGS["scripted"], num_images=60)
    with open_arena(setting, SEED, web_faults=0.1, folder=tmp_path) as arena:
        reference = run_undisturbed(arena)
        plans = [plan(SEED, number, reference.num_shards) for number in range(KILLS_PER_TRIAL * NUM_TRIALS)]
        trials = [
            run_trial(arena, number, plans[number * KILLS_PER_TRIAL : (number + 1) * KILLS_PER_TRIAL], reference)
            for number in range(NUM_TRIALS)
        ]
        injected = arena.proxy.counts()["injected"]
    told = "\n".join(map(str, trials))
    kills = [kill for trial in trials for kill in trial.kills]
    assert len(kills) == len(plans), told
    assert {kill.fault for kill in kills} == set(Fault)
    assert {fault for fault in WebFault if any(key.startswith(f"{fault} ") for key in injected)} == set(WebFault)
    for trial in trials:
        assert (trial.num_lost, trial.num_doubled, trial.problems) == (0, 0, []), told
        assert (trial.num_differing, trial.num_needless) == (0, 0), told
        assert trial.errors == [], told
        assert trial.num_restarts == trial.faults.count(Fault.DRIVER), told
