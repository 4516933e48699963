"""Faults of the object store: outages, and credentials that expire."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass

from benchmarks.chaos_faults import PHASES, Driver, Expectation, Fault, Injection, Reference, Scene
from benchmarks.faulty_proxy import WebFault

LONGEST_OUTAGE_S = 60.0
_OUTAGES = (WebFault.INTERNAL_ERROR, WebFault.SLOW_DOWN, WebFault.RESET)


@dataclass(frozen=True)
class StoreFault(Fault):
    """Begins some time after a number of images was visited in a phase."""

    phase: str
    num_visits: int
    delay_s: float

    def has_come(self, scene: Scene) -> bool:
        return len(scene.visits(self.phase)) >= self.num_visits

    def moment(self) -> str:
        return f"in {self.phase} at {self.num_visits} images"

    @staticmethod
    def moment_of(draws: random.Random, block: int, reference: Reference) -> tuple[str, int, float]:
        """Draw a moment."""
        most = len(reference.images_for_both_models()) * 3 // 4
        return PHASES[block % 2], draws.randint(1, most), draws.uniform(0, 0.5)


@dataclass(frozen=True)
class Outage(StoreFault):
    """All requests fail for 1 to 60 s."""

    kind = "outage"
    expects = Expectation.PERSON_ACTS
    fault: WebFault
    seconds: float

    @classmethod
    def plan(cls, draws: random.Random, block: int, reference: Reference) -> Fault:
        # Short outages are as frequent as long ones.
        seconds = round(LONGEST_OUTAGE_S ** draws.random(), 1)
        return cls(*cls.moment_of(draws, block, reference), draws.choice(_OUTAGES), seconds)

    def inject(self, scene: Scene, driver: Driver) -> Injection | None:  # noqa: ARG002
        if not self.has_come(scene):
            return None
        time.sleep(self.delay_s)
        scene.testbed.proxy.begin_outage(self.fault, self.seconds)
        return Injection(self, f"{self.moment()}: {self.fault} for {self.seconds:g} s")

    def act(self, scene: Scene, line: str) -> str | None:
        if "the same command again" not in line.lower():
            return None
        scene.testbed.proxy.wait_until_outage_ends()
        return "wait until the store answers"


@dataclass(frozen=True)
class ExpiredCredentials(StoreFault):
    """The store refuses all requests until a person renews the credentials."""

    kind = "credentials"
    expects = Expectation.PERSON_ACTS

    @classmethod
    def plan(cls, draws: random.Random, block: int, reference: Reference) -> Fault:
        return cls(*cls.moment_of(draws, block, reference))

    def inject(self, scene: Scene, driver: Driver) -> Injection | None:  # noqa: ARG002
        if not self.has_come(scene):
            return None
        time.sleep(self.delay_s)
        scene.testbed.proxy.expire_credentials()
        return Injection(self, self.moment())

    def act(self, scene: Scene, line: str) -> str | None:
        if "Renew the credentials" not in line:
            return None
        scene.testbed.proxy.renew_credentials()
        return "renew the credentials"
