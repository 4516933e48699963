"""Kills during leveling, and whether a trained student is that of the undisturbed training."""

from __future__ import annotations

import math
import random
import re
import time
from dataclasses import dataclass
from enum import StrEnum

from safetensors.numpy import load

from benchmarks.chaos_faults import Driver, Fault, Injection, Reference, Scene, Start
from benchmarks.chaos_testbed import STUDENT
from mpa_ray.run.run import Run

TRAINING = f"students/{STUDENT}/parity"
MOST_CHECKPOINTS = 5
"""A kill strikes after fewer checkpoints than this, of which there is one for each step."""
LARGEST_DISTANCE = 0.02
"""Weights may differ by this share of what the training changed, because sums have another order."""


class Victim(StrEnum):
    """What is killed."""

    WORKER = "worker"
    NODE = "node"
    DRIVER = "driver"


@dataclass(frozen=True)
class LevelingKill(Fault):
    """A worker of the training, the worker node or the driver is killed some time after a checkpoint."""

    victim: Victim
    num_checkpoints: int
    delay_s: float
    draw: float

    @property
    def start(self) -> Start:
        return Start.IDENTIFIED

    @property
    def jobs(self) -> tuple[str, ...]:
        return ("level",)

    @property
    def kind(self) -> str:
        return f"leveling {self.victim}"

    @classmethod
    def plan(cls, draws: random.Random, block: int, reference: Reference) -> Fault:  # noqa: ARG003
        victims = list(Victim)
        return cls(
            victims[block % len(victims)], draws.randrange(MOST_CHECKPOINTS), draws.uniform(0, 0.5), draws.random()
        )

    def inject(self, scene: Scene, driver: Driver) -> Injection | None:
        workers = scene.cluster.training_workers()
        if not workers or num_checkpoints(scene) < self.num_checkpoints:
            return None
        time.sleep(self.delay_s)
        match self.victim:
            case Victim.WORKER:
                workers[int(self.draw * len(workers))].kill()
            case Victim.NODE:
                scene.cluster.replace_worker_node(all_at_once=True)
            case Victim.DRIVER:
                driver.kill()
        return Injection(self, f"after {num_checkpoints(scene)} checkpoints")


def num_checkpoints(scene: Scene) -> int:
    """How many checkpoints the training has begun to write."""
    names = (re.search(r"/checkpoints/(checkpoint_[^/]+)/", key) for key in scene.testbed.files_of(scene.name))
    return len({name[1] for name in names if name is not None})


def distance(run: Run, reference: Run) -> float:
    """How far the adapter of a run is from that of another run, as a share of what training changed.

    Raises:
        FileNotFoundError: one of them has no adapter.
    """
    one, other = (load(r.storage.read(f"{TRAINING}/adapter/adapter_model.safetensors")) for r in (run, reference))
    if one.keys() != other.keys():
        return math.inf
    # Adapters start with B = 0 and a seeded A, so training changed B and a part of A.
    changed = sum(float((weights**2).sum()) for name, weights in other.items() if "lora_B" in name)
    different = sum(float(((one[name] - weights) ** 2).sum()) for name, weights in other.items())
    return math.sqrt(different / changed)
