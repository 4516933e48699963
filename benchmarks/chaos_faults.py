"""What a fault of a trial is, and the faults that kill processes."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar

import psutil  # type: ignore[import-untyped]

from benchmarks.chaos_driver import Visit, read_visits
from benchmarks.chaos_testbed import OTHER, STUDENT, Testbed
from benchmarks.local_cluster import Cluster, title_of
from mpa_ray.run.run import Run

PHASES = ("annotate", "identify")
DATASETS = {"annotate": "annotations", "identify": f"verdicts/{STUDENT}"}
"""The dataset that each phase writes."""
IDENTIFYING = ("index", "annotate", "identify")

ShardOfPhase = tuple[str, str]
Driver = subprocess.Popen[bytes]


class Expectation(StrEnum):
    """How a trial with a fault goes on."""

    FINISHES = "finishes"
    """The command, or the same command after a kill, finishes without a person's help."""
    PERSON_ACTS = "person acts"
    """The command may end with one line that says what a person must do. Then the same command continues."""


class Start(StrEnum):
    """What a trial begins with."""

    NOTHING = "nothing"
    IDENTIFIED = "identified"
    """A copy of the undisturbed run."""
    LEVELED = "leveled"
    """A copy of the undisturbed run whose student was trained, too."""


@dataclass(frozen=True)
class Reference:
    """The undisturbed run: what every trial has to result in."""

    verdicts: Mapping[str, Mapping[str, Any]]
    """By annotation, without the columns that may differ between runs."""
    shard_of: Mapping[str, str]
    """By image."""

    @property
    def num_shards(self) -> int:
        return len(set(self.shard_of.values()))

    def images_for_both_models(self) -> list[str]:
        """Images with bytes of their own about which the teacher and the student are asked."""
        contents = Counter(row["content_sha256"] for row in self.verdicts.values())
        rows = (row for row in self.verdicts.values() if row["student_answer"] is not None)
        return sorted(row["image_id"] for row in rows if contents[row["content_sha256"]] == 1)


@dataclass
class OtherDriver:
    """A second driver of the same run."""

    process: Driver
    errors: Path


@dataclass
class Scene:
    """A trial in progress, as its faults see it."""

    testbed: Testbed
    folder: Path
    run: Run
    reference: Reference
    others: list[OtherDriver] = field(default_factory=list)
    damaged: dict[str, bytes] = field(default_factory=dict)
    """The files of the run that were damaged, with the content before."""

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def cluster(self) -> Cluster:
        return self.testbed.cluster

    def start_other(self, config: str, jobs: Sequence[str]) -> None:
        """Start a second driver of the run."""
        process = self.testbed.start_other(self.folder, config, jobs)
        self.others.append(OtherDriver(process, self.folder / f"{OTHER}.err"))

    def audit(self, *options: str) -> dict[str, Any]:
        """What `mpa-ray audit` prints about the run."""
        return self.testbed.audit(self.name, *options)

    def repair(self) -> str:
        """What a person does after damage: `mpa-ray audit --repair`, and then what its findings say. Returns this."""
        findings = self.audit("--repair").get("damage", ())
        restored = [
            finding["file"] for finding in findings if not finding["repaired"] and "restore" in finding["remedy"]
        ]
        for path in set(restored).intersection(self.damaged):
            self.run.storage.write(path, self.damaged[path])
        return f"mpa-ray audit --repair{', and restore the file from a copy' * bool(restored)}"

    def visits(self, phase: str) -> list[Visit]:
        return read_visits(self.folder, phase)

    def committed(self, *phases: str) -> frozenset[ShardOfPhase]:
        return frozenset(
            (phase, Path(marker).stem)
            for phase in phases
            for marker in self.run.storage.list(f"{DATASETS[phase]}/commits")
        )

    def uncommitted_of(self, injection: Injection) -> set[ShardOfPhase]:
        """The shards that the killed actors had begun and that were not committed."""
        begun = {
            (phase, self.reference.shard_of[visit.image_id])
            for phase in DATASETS
            for visit in self.visits(phase)
            if visit.pid in injection.pids
        }
        return begun - injection.committed


@dataclass(frozen=True)
class Injection:
    """A fault that has happened."""

    fault: Fault
    moment: str
    pids: frozenset[int] = frozenset()
    """The model actors that it killed."""
    committed: frozenset[ShardOfPhase] = frozenset()
    """What was committed before it."""


@dataclass(frozen=True)
class Fault(ABC):
    """One fault of a trial. Its fields are drawn by `plan`, so that they depend on the seed and the trial alone."""

    expects: ClassVar[Expectation] = Expectation.FINISHES
    is_kill: ClassVar[bool] = False
    """Whether it kills model actors, whose shards in flight may be redone, and no other shard."""

    @property
    @abstractmethod
    def kind(self) -> str:
        """The name in tables."""

    @property
    def start(self) -> Start:
        """What the trial begins with."""
        return Start.NOTHING

    @property
    def jobs(self) -> tuple[str, ...]:
        """The jobs that the command runs."""
        return IDENTIFYING

    @classmethod
    @abstractmethod
    def plan(cls, draws: random.Random, block: int, reference: Reference) -> Fault:
        """Draw a fault.

        Args:
            draws: Depends on the seed and the number of the trial.
            block: The number of the block of trials, for what takes turns.
            reference: The undisturbed run.
        """

    def settings(self, scene: Scene) -> dict[str, Any]:  # noqa: ARG002
        """Settings of the run that cause the fault."""
        return {}

    def prepare(self, scene: Scene) -> None:  # noqa: ARG002
        """Do what has to be done before the first driver starts."""
        return

    @abstractmethod
    def inject(self, scene: Scene, driver: Driver) -> Injection | None:
        """Inject the fault, if its moment has come; None otherwise. Called again and again while a driver runs."""

    def act(self, scene: Scene, line: str) -> str | None:  # noqa: ARG002
        """Do what a person does after a line that ended the command, and say what; None if the line is about another
        problem."""
        return None

    def expected(self, reference: Reference) -> Mapping[str, Mapping[str, Any]]:
        """The verdicts that a trial with this fault has to result in."""
        return reference.verdicts


# --- kills -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kill(Fault):
    """Kills something, some time after a number of the phase's shards are committed."""

    is_kill: ClassVar[bool] = True
    phase: str
    num_committed: int
    delay_s: float
    draw: float
    """In [0, 1): picks the victim."""

    @classmethod
    def plan(cls, draws: random.Random, block: int, reference: Reference) -> Fault:
        phase = PHASES[(block + len(cls.__name__)) % 2]
        most = reference.num_shards * 3 // 4
        return cls(phase, draws.randrange(most), draws.uniform(0, 0.3), draws.random())

    def pick(self, candidates: Sequence[Any]) -> Any:
        return candidates[int(self.draw * len(candidates))]

    def inject(self, scene: Scene, driver: Driver) -> Injection | None:
        if not scene.visits(self.phase) or len(scene.committed(self.phase)) < self.num_committed:
            return None
        time.sleep(self.delay_s)
        committed = scene.committed(*PHASES)
        killed = self.kill(scene.cluster, driver)
        return None if killed is None else self.injection(committed, (actor.pid for actor in killed))

    def injection(self, committed: frozenset[ShardOfPhase], pids: Iterable[int]) -> Injection:
        number = sum(phase == self.phase for phase, _ in committed)
        return Injection(self, f"in {self.phase} at {number} shards", frozenset(pids), committed)

    @abstractmethod
    def kill(self, cluster: Cluster, driver: Driver) -> list[psutil.Process] | None:
        """Kill; returns the model actors that die of it, or None if there was nothing to kill."""


class ActorKill(Kill):
    """SIGKILL to a model actor."""

    kind = "actor"

    def kill(self, cluster: Cluster, driver: Driver) -> list[psutil.Process] | None:  # noqa: ARG002
        return _kill_one(self, [(actor, actor) for actor in cluster.model_actors()])


class EngineKill(Kill):
    """SIGKILL to a process of a vLLM engine. A scripted engine has no process; it dies once, on an image."""

    kind = "engine"

    def settings(self, scene: Scene) -> dict[str, Any]:
        if not scene.testbed.setting.is_scripted:
            return {}
        self._deaths(scene).mkdir()
        engine = {"die_on": [self._image(scene)], "die_once_in": str(self._deaths(scene))}
        return model_settings(self.phase, engine)

    def _image(self, scene: Scene) -> str:
        return str(self.pick(scene.reference.images_for_both_models()))

    def _deaths(self, scene: Scene) -> Path:
        """The folder in which a death of a scripted engine leaves a file."""
        return scene.folder / f"{self.phase}.deaths"

    def inject(self, scene: Scene, driver: Driver) -> Injection | None:
        if not scene.testbed.setting.is_scripted:
            return super().inject(scene, driver)
        if not any(self._deaths(scene).iterdir()):
            return None
        pids = [visit.pid for visit in scene.visits(self.phase) if visit.image_id == self._image(scene)]
        return self.injection(scene.committed(*PHASES), pids[:1])

    def kill(self, cluster: Cluster, driver: Driver) -> list[psutil.Process] | None:  # noqa: ARG002
        return _kill_one(self, [(actor, engine) for actor in cluster.model_actors() for engine in _engines(actor)])


class NodeLoss(Kill):
    """SIGKILL to the worker node's raylet."""

    kind = "node"

    def kill(self, cluster: Cluster, driver: Driver) -> list[psutil.Process] | None:  # noqa: ARG002
        return cluster.replace_worker_node()


class Preemption(Kill):
    """SIGTERM to all processes of the worker node, and SIGKILL after a notice, as a cloud ends a spot machine."""

    kind = "preemption"

    def kill(self, cluster: Cluster, driver: Driver) -> list[psutil.Process] | None:  # noqa: ARG002
        return cluster.preempt_worker_node(notice_s=4 * self.draw)


class DriverKill(Kill):
    """SIGKILL to the driver."""

    kind = "driver"

    def kill(self, cluster: Cluster, driver: Driver) -> list[psutil.Process] | None:
        driver.kill()
        return cluster.model_actors()


class Interrupt(Kill):
    """SIGTERM to the driver, as `ray job stop` and schedulers send it."""

    kind = "interrupt"
    expects = Expectation.PERSON_ACTS

    def kill(self, cluster: Cluster, driver: Driver) -> list[psutil.Process] | None:
        actors = cluster.model_actors()
        driver.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            driver.wait(timeout=60)
        return actors

    def act(self, scene: Scene, line: str) -> str | None:  # noqa: ARG002
        return "run the same command again" if line.startswith("Interrupted: ") else None


def model_settings(phase: str, engine: dict[str, Any]) -> dict[str, Any]:
    """Settings of the engine that a phase uses."""
    return {"teacher": {"engine": engine}} if phase == "annotate" else {"student": {"engine": engine}}


def _kill_one(kill: Kill, victims: Sequence[tuple[psutil.Process, psutil.Process]]) -> list[psutil.Process] | None:
    """Kill the second process of one of the pairs; returns the first."""
    if not victims:
        return None
    actor, victim = kill.pick(victims)
    victim.kill()
    return [actor]


def _engines(actor: psutil.Process) -> list[psutil.Process]:
    """The processes of a vLLM engine: its core and the core's workers."""
    return [p for p in actor.children(recursive=True) if title_of(p).startswith("VLLM::")]
