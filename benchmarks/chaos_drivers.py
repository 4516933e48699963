"""Two drivers of one run at the same time, with equal and with different settings."""

from __future__ import annotations

import json
import random
import time
from dataclasses import dataclass

from benchmarks.chaos_driver import CONFIG
from benchmarks.chaos_faults import Driver, Expectation, Fault, Injection, Reference, Scene

OTHER_CONFIG = "other-config.json"


@dataclass(frozen=True)
class SecondDriver(Fault):
    """A second driver starts, before the first one has committed anything or later."""

    num_committed: int
    delay_s: float

    @classmethod
    def plan(cls, draws: random.Random, block: int, reference: Reference) -> Fault:
        # In half of the trials, both drivers start before the first commit.
        num_committed = draws.randrange(reference.num_shards * 3 // 4) if block % 2 else 0
        return cls(num_committed, draws.uniform(0, 3))

    def inject(self, scene: Scene, driver: Driver) -> Injection | None:  # noqa: ARG002
        if self.num_committed and len(scene.committed("annotate")) < self.num_committed:
            return None
        time.sleep(self.delay_s)
        scene.start_other(self.config, self.jobs)
        return Injection(self, f"at {len(scene.committed('annotate'))} annotated shards")

    @property
    def config(self) -> str:
        """The name of the second driver's configuration in the folder of the trial."""
        return CONFIG


class EqualDrivers(SecondDriver):
    """Both have the same settings, and both finish."""

    kind = "equal drivers"


class DifferentDrivers(SecondDriver):
    """The second one samples at another temperature. One of them is refused, and rows are never mixed."""

    kind = "different drivers"
    expects = Expectation.PERSON_ACTS
    _REFUSED = "annotate.sampling.temperature: was "

    @property
    def config(self) -> str:
        return OTHER_CONFIG

    def prepare(self, scene: Scene) -> None:
        tree = json.loads((scene.folder / CONFIG).read_text())
        # Replies of scripted engines do not depend on it.
        tree["annotate"]["sampling"]["temperature"] += 0.5
        (scene.folder / OTHER_CONFIG).write_text(json.dumps(tree))

    def is_refused(self, line: str) -> bool:
        """Whether a line says that the run was made with the other settings."""
        return line.startswith("ConfigError: ") and self._REFUSED in line

    def act(self, scene: Scene, line: str) -> str | None:
        if not self.is_refused(line):
            return None
        (scene.folder / CONFIG).write_text((scene.folder / OTHER_CONFIG).read_text())
        return "undo the change of a setting"
