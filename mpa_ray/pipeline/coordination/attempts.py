"""Finds images that kill engines, and limits how often a shard is retried."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mpa_ray.config import LimitsConfig
from mpa_ray.stages.visits import Attempt


@dataclass
class _ShardHistory:
    """The attempts at one shard so far."""

    num_attempts: int = 0
    num_deaths: int = 0
    num_silent_deaths: int = 0
    """Deaths without a report."""
    has_reported: bool = True
    """Whether the latest attempt has reported how it ended."""
    image_alone: str | None = None
    """The image that is alone in an engine at the moment; None if there is no such image."""
    suspects: set[str] = field(default_factory=set)
    num_kills: Counter[str] = field(default_factory=Counter)
    """How many engines each image has killed while it was alone in them."""
    last_error: str = "the process ended without an error"


class Attempts:
    """The attempts at the shards of a pass.

    When an engine dies, the images that were in it become suspects. The next attempt visits all other images first, and
    then each suspect alone. Once `max_image_deaths` engines have died while an image was alone in them, the image is
    quarantined. A process that is killed at once (for lack of memory, or by a fault in a codec) reports nothing. After
    the second such death, every image of the shard is visited alone.
    """

    def __init__(self, limits: LimitsConfig) -> None:
        self._limits = limits
        self._histories: dict[str, _ShardHistory] = {}

    def begin(self, shard: str) -> Attempt:
        """Begin an attempt, and count a death if the previous attempt ended with one."""
        history = self._histories.setdefault(shard, _ShardHistory())
        history.num_attempts += 1
        if history.image_alone is not None:
            history.num_kills[history.image_alone] += 1
            history.suspects.add(history.image_alone)
            history.num_deaths += 1
        elif history.num_attempts > 1 and not history.has_reported:
            history.num_silent_deaths += 1
            history.num_deaths += 1
        history.has_reported, history.image_alone = False, None
        max_kills = self._limits.max_image_deaths
        quarantined = {image_id: number for image_id, number in history.num_kills.items() if number >= max_kills}
        return Attempt(
            number=history.num_attempts,
            alone=frozenset(history.suspects - quarantined.keys()),
            all_alone=history.num_silent_deaths > 1,
            quarantined=quarantined,
            given_up=self._given_up(shard, history),
        )

    def set_alone(self, shard: str, image_id: str | None) -> None:
        """Record which image of the shard is alone in an engine; None once that image has left the engine."""
        self._histories[shard].image_alone = image_id

    def report_death(self, in_flight: Mapping[str, Sequence[str]], error: str) -> None:
        """Record that an engine died, and which images of each shard were in it."""
        for shard, images in in_flight.items():
            history = self._histories[shard]
            history.has_reported, history.last_error = True, error
            if images and history.image_alone is None:
                history.num_deaths += 1
                history.suspects.update(images)

    def report_visited(self, shard: str) -> None:
        """Record that all images of the shard have been visited. Ray may still lose the rows and ask for them again."""
        if (history := self._histories.get(shard)) is not None:
            history.has_reported = True

    def has_ended_silently(self, shard: str) -> bool:
        """Whether the latest attempt has ended without a report of how it ended. The attempt must be over."""
        history = self._histories.get(shard)
        return history is not None and not history.has_reported

    def explain(self, shard: str, cause: str) -> None:
        """Record why the latest attempt at a shard ended."""
        self._histories[shard].last_error = cause

    def forget(self, shard: str) -> None:
        """Drop the history of a committed shard."""
        self._histories.pop(shard, None)

    def _given_up(self, shard: str, history: _ShardHistory) -> str | None:
        if history.num_deaths < self._limits.max_engine_deaths:
            return None
        return f"the engine died {history.num_deaths} times on shard {shard}, the last time with: {history.last_error}"
