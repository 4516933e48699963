"""A few seeded kills of each kind, on a cluster of its own, and nothing is lost or doubled."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.chaos import SETTINGS, Fault, Trial, open_arena, run_trial, run_undisturbed
from benchmarks.faulty_proxy import WebFault

NUM_TRIALS = 6


@pytest.mark.timeout(600)
def test_kills_lose_and_double_nothing(tmp_path: Path) -> None:
    setting = replace(SETTINGS["scripted"], num_images=60)
    with open_arena(setting, seed=11, web_faults=0.1, folder=tmp_path) as arena:
        reference = run_undisturbed(arena)
        trials = [run_trial(arena, number, reference) for number in range(NUM_TRIALS)]
        injected = arena.proxy.counts()["injected"]
    told = "\n".join(map(str, trials))
    assert {trial.fault for trial in trials} == set(Fault)
    assert all(trial.num_committed is not None for trial in trials), told
    assert sum(trial.num_redone_shards for trial in trials) > 0, told
    assert all(trial.num_restarts == 1 for trial in trials if trial.fault is Fault.DRIVER), told
    assert faults_of(trials) == Counter(), told
    assert {fault for fault in WebFault if any(key.startswith(fault) for key in injected)} == set(WebFault)


def faults_of(trials: list[Trial]) -> Counter[str]:
    """What went wrong in them, added up."""
    counted = Counter(
        {
            "lost": sum(trial.num_lost for trial in trials),
            "doubled": sum(trial.num_doubled for trial in trials),
            "differing": sum(trial.num_differing for trial in trials),
            "needlessly redone": sum(trial.num_needless for trial in trials),
            "problems of the audit": sum(len(trial.problems) for trial in trials),
        }
    )
    return +counted
