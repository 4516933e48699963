"""Images that kill every engine: 1, 4 or 16 in one shard."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.chaos_faults import PHASES, Driver, Fault, Injection, Reference, Scene, model_settings

NUMBERS = (1, 4, 16)
SHARD_SIZE = 32


@dataclass(frozen=True)
class Poison(Fault):
    """Images of one shard kill every engine that works on them, and nothing else fails."""

    phase: str
    setting: str
    """How a scripted engine dies: `die_on` (it raises an error) or `kill_on` (its process is killed)."""
    images: tuple[str, ...]

    @property
    def kind(self) -> str:
        return f"poison {len(self.images)}"

    @classmethod
    def plan(cls, draws: random.Random, block: int, reference: Reference) -> Fault:
        in_order = sorted(reference.shard_of)
        candidates = set(reference.images_for_both_models())
        shards = [in_order[first : first + SHARD_SIZE] for first in range(0, len(in_order), SHARD_SIZE)]
        usable = [[image for image in shard if image in candidates] for shard in shards]
        number = NUMBERS[block % len(NUMBERS)]
        chosen = draws.choice([images for images in usable if len(images) >= number])
        images = tuple(sorted(draws.sample(chosen, number)))
        return cls(draws.choice(PHASES), draws.choice(("die_on", "kill_on")), images)

    def settings(self, scene: Scene) -> dict[str, Any]:  # noqa: ARG002
        engine = model_settings(self.phase, {self.setting: list(self.images)})
        return {**engine, "source": {"shard_size": SHARD_SIZE}}

    def inject(self, scene: Scene, driver: Driver) -> Injection | None:  # noqa: ARG002
        visited = {visit.image_id for visit in scene.visits(self.phase)}
        if visited.isdisjoint(self.images):
            return None
        return Injection(self, f"in {self.phase}: {self.setting} {', '.join(self.images)}")

    def expected(self, reference: Reference) -> Mapping[str, Mapping[str, Any]]:
        return {
            name: {"image_id": row["image_id"], "state": "failed", "reason": "kills_engine"}
            if row["image_id"] in self.images
            else row
            for name, row in reference.verdicts.items()
        }
