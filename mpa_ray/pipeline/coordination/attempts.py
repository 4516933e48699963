"""The attempts at the shards of a pass: what deaths of engines show about images, and when a shard is given up."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import NamedTuple

from mpa_ray.config import LimitsConfig
from mpa_ray.errors.remedies import Remedy
from mpa_ray.pipeline.coordination.poison_search import PoisonSearch
from mpa_ray.run.suspects import Suspects
from mpa_ray.stages.visits import Attempt

_MAX_DEATHS_AT_PROBE = 2
"""The engine is at fault if this many engines in a row died while they had the probe picture."""
_MAX_TAKEN_AWAY = 100
"""The pass ends if this many engines were taken away from one shard. Without a limit, it might never end."""
_NUM_BLAMED_WITHOUT_SURVIVOR = 6
"""The engine is at fault if this many images of a large shard are in quarantine, but no image of the shard was visited
without a death. Groups are selected at random, so a working engine would very likely have survived one of them."""
_MAX_POISON_SHARE = 0.25
"""A shard is large if `limits.max_poison_images` is at most this share of its images."""


class _Problem(NamedTuple):
    """Why a shard is given up."""

    problem: str | None = None
    is_engine_fault: bool = False
    remedy: Remedy | None = None


@dataclass
class _Shard:
    """A shard that is not committed yet."""

    search: PoisonSearch
    num_attempts: int = 0
    engine: Hashable | None = None
    """The engine of the latest attempt; None if that attempt is over."""
    group: tuple[str, ...] = ()
    """The group of suspects that is in the engine. The engine then holds no other image."""
    num_taken_away: int = 0
    last_taken_away: str = ""
    last_error: str = ""
    """The cause of the latest death of an engine that was not taken away."""


class Attempts:
    """The attempts at the shards of a pass.

    If an engine dies, the images that were in it become suspects. A process that is killed outright (out of memory, a
    fault in a codec) reports nothing, so all images of its shards become suspects. A `PoisonSearch` for each shard
    finds the images that kill engines. Deaths that advance this search do not count against the shard; the docstring of
    `PoisonSearch` shows that the search always ends.

    After a death, every engine has to answer a probe picture before its next shard. If two engines in a row die on the
    picture, the engine is at fault and the pass ends. An engine is taken away if its node ends or if its process is
    asked to end. This shows nothing about images, and does not count as a death.
    """

    def __init__(self, limits: LimitsConfig, random: Random | None = None) -> None:
        """Begin a pass. `random` selects the groups to visit."""
        self._limits = limits
        self._random = random or Random()
        self._shards: dict[str, _Shard] = {}
        self._is_any_at_fault = False
        self._probed: set[Hashable] = set()
        """Engines that have the probe picture now."""
        self._num_deaths_at_probe = 0
        self._error_at_probe = ""

    def is_known(self, shard: str) -> bool:
        """Whether `learn` or `begin` was called for the shard, and `forget` was not called since."""
        return shard in self._shards

    def unfinished_engine(self, shard: str) -> Hashable | None:
        """The engine of the latest attempt, which may have died; None if there is no attempt or the attempt is over."""
        known = self._shards.get(shard)
        return known.engine if known is not None else None

    def learn(self, shard: str, before: Suspects) -> None:
        """Add what earlier commands found out about a shard. Called before the shard's first attempt in this pass."""
        search = PoisonSearch(self._limits.max_image_deaths, before, self._random)
        self._shards[shard] = _Shard(search, last_error=before.last_error)

    def knowledge(self, shard: str) -> Suspects:
        """What is known about a shard."""
        known = self._shards[shard]
        return replace(known.search.knowledge, last_error=known.last_error)

    def begin(self, shard: str, engine: Hashable, images: Sequence[str]) -> Attempt:
        """Begin an attempt. If the engine of the latest attempt has died, call `bury` first.

        Args:
            shard: The shard.
            engine: Identifies the engine.
            images: The shard's images that an engine has to visit.
        """
        if shard not in self._shards:
            self.learn(shard, Suspects())
        begun = self._shards[shard]
        begun.num_attempts += 1
        begun.engine, begun.group = engine, ()
        begun.search.begin(images)
        given_up = self._problem(shard, begun)
        return Attempt(
            number=begun.num_attempts,
            suspects=begun.search.suspects,
            quarantined=begun.search.quarantined,
            needs_probe=self._is_any_at_fault or bool(begun.search.suspects),
            given_up=given_up.problem,
            is_engine_fault=given_up.is_engine_fault,
            remedy=given_up.remedy,
        )

    def begin_probe(self, engine: Hashable) -> None:
        """Record that the probe picture is in an otherwise empty engine."""
        self._probed.add(engine)

    def end_probe(self, engine: Hashable, is_answered: bool = True) -> None:
        """Record that the probe picture is no longer in the engine, and whether the engine has answered it."""
        if engine in self._probed and is_answered:
            self._num_deaths_at_probe = 0
        self._probed.discard(engine)

    def next_group(self, shard: str, engine: Hashable) -> tuple[str, ...] | None:
        """Record that the previous group has been visited. Return the next group of suspects; empty if none is left.

        The engine must be empty.

        Returns:
            None if the shard's latest attempt is not in this engine. The engine is then assumed to be dead.
        """
        begun = self._shards.get(shard)
        if begun is None or begun.engine != engine:
            return None
        if begun.group:
            begun.search.survive(begun.group)
        begun.group = begun.search.next_group()
        return begun.group

    def report_visited(self, shard: str, engine: Hashable) -> None:
        """Record that all images of the shard have been visited. Ray may still lose the rows and ask for them again.

        If the shard's latest attempt is not in this engine, nothing is recorded.
        """
        if (begun := self._shards.get(shard)) is not None and begun.engine == engine:
            begun.engine = None

    def bury(
        self, engine: Hashable, in_flight: Mapping[str, Collection[str]] | None, cause: str, was_taken_away: bool
    ) -> list[str]:
        """Record the death of an engine. Another call for the same death has no effect.

        Args:
            engine: The engine.
            in_flight: By shard, the images that were in the engine; None if the engine could not report them.
            cause: Why the engine died.
            was_taken_away: Whether the engine was ended for reasons that have nothing to do with its images.

        Returns:
            The shards about whose images the death has shown something.
        """
        shards = {name: begun for name, begun in self._shards.items() if begun.engine == engine}
        in_group = {name: begun for name, begun in shards.items() if begun.group}
        groups = {name: begun.group for name, begun in in_group.items()}
        for begun in shards.values():
            begun.engine, begun.group = None, ()
        has_probe = engine in self._probed
        self._probed.discard(engine)
        if was_taken_away:
            for begun in shards.values():
                begun.num_taken_away, begun.last_taken_away = begun.num_taken_away + 1, cause
            return []
        for begun in shards.values():
            begun.last_error = cause
        self._is_any_at_fault = True
        if has_probe:
            self._num_deaths_at_probe, self._error_at_probe = self._num_deaths_at_probe + 1, cause
            return []
        if in_group:
            for name, begun in in_group.items():
                begun.search.die_in_group(groups[name], None if in_flight is None else in_flight.get(name, ()))
            return list(in_group)
        present = shards if in_flight is None else {name: shards[name] for name in shards if in_flight.get(name)}
        for name, begun in present.items():
            images = None if in_flight is None else in_flight[name]
            begun.search.die_among_others(images, is_only_shard=len(present) == 1)
        return list(present)

    def forget(self, shard: str) -> None:
        """Drop what is known about a shard."""
        self._shards.pop(shard, None)

    def _problem(self, shard: str, begun: _Shard) -> _Problem:
        """Why the shard is given up. All fields have their default values if the shard is not given up."""
        search, limits = begun.search, self._limits
        last = f"the last time with: {begun.last_error or 'the process ended without an error'}"
        num_blamed = len(search.quarantined)
        is_large = limits.max_poison_images <= _MAX_POISON_SHARE * search.num_images
        if self._num_deaths_at_probe >= _MAX_DEATHS_AT_PROBE:
            problem = "the engine has died and its successors die of a built-in test picture, so no image is to blame"
            return _Problem(f"{problem}: {self._error_at_probe}", is_engine_fault=True)
        if begun.num_taken_away >= _MAX_TAKEN_AWAY:
            problem = f"{begun.num_taken_away} engines were ended from outside while they visited shard {shard}"
            return _Problem(f"{problem}, the last time with: {begun.last_taken_away}", is_engine_fault=True)
        if is_large and num_blamed >= _NUM_BLAMED_WITHOUT_SURVIVOR and not search.has_survivor:
            problem = f"each of {num_blamed} images of shard {shard} killed engines and no image was visited"
            problem = f"{problem}, so the engine is at fault and no image is to blame; {last}"
            return _Problem(problem, is_engine_fault=True)
        if num_blamed > limits.max_poison_images:
            images = f"{'1 image' if num_blamed == 1 else f'{num_blamed} images'} of shard {shard}"
            problem = f"{images} killed engines, more than limits.max_poison_images = {limits.max_poison_images}"
            return _Problem(f"{problem}, {last}", remedy=Remedy.POISON)
        if search.num_unexplained >= limits.max_engine_deaths:
            return _Problem(f"the engine died {search.num_unexplained} times on shard {shard}, {last}")
        return _Problem()
