"""Finds the images of one shard that kill engines. This module uses no Ray, no files and no event loop."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from random import Random

from mpa_ray.run.suspects import Suspects

NUM_PARTS = 8
"""The number of parts into which a group is divided. Starting an engine takes far longer than visiting a few images, so
few engines should die. If 1 of 256 images kills engines, the search finds this image with at most 5 deaths when groups
are divided into 8 parts, and with at most 10 deaths when they are divided into 2."""


class PoisonSearch:
    """The search for the images of a shard that kill engines. Suspects are visited in groups.

    The images of a group are visited together in an otherwise empty engine. If the engine survives, the images are
    cleared. If the engine dies, the group is divided into smaller groups, down to single images. An image is
    quarantined when `max_image_deaths` engines have died while they held only this image.

    **The search ends, whatever kills the engines.** Let a shard have n images, U be `limits.max_engine_deaths`, and K
    be `max_image_deaths`. A death does one of four things:

    1. It makes suspects of images that were never suspects before: at most n deaths.
    2. It divides a group. Groups are disjoint, so a group of m images is divided at most m - 1 times until each of its
       parts is a single image or is cleared. Cleared images come back into groups only by deaths of the fourth kind, so
       at most (U + 1)(n - 1) deaths divide a group.
    3. It adds a kill to an image that was alone. After K kills the image is quarantined: at most n K deaths.
    4. It does none of these, because the engine held no image, or only images that were cleared before. Such a death
       counts against the shard, and the U-th such death ends the shard.

    Usually `limits.max_poison_images` ends a shard much earlier.
    """

    def __init__(self, max_image_deaths: int, before: Suspects, random: Random) -> None:
        """Begin a search.

        Args:
            max_image_deaths: See `LimitsConfig`.
            before: What earlier commands found out about the shard.
            random: Selects the next group. In a fixed order, all groups that kill engines might come first.
        """
        self._max_image_deaths, self._random = max_image_deaths, random
        self._images: tuple[str, ...] = ()
        self._groups = list(before.groups)
        self._divided: list[tuple[str, ...]] = []
        """The parts of the group that was divided last. They are visited before all other groups."""
        self._cleared = set(before.cleared)
        self._num_kills = Counter(before.num_kills)
        self._has_survivor = before.has_survivor
        self.num_unexplained = 0
        """Deaths that did not advance the search. Every command counts from 0, so that a shard can be tried again."""

    def begin(self, images: Sequence[str]) -> None:
        """Begin an attempt.

        Args:
            images: All images of the shard that an engine has to visit.
        """
        self._images = tuple(images)
        # Images may be in quarantine because of deaths that another driver has recorded.
        quarantined = self.quarantined
        groups = (tuple(image_id for image_id in group if image_id not in quarantined) for group in self._groups)
        self._groups = [group for group in groups if group]

    @property
    def suspects(self) -> frozenset[str]:
        """Images that are visited only in groups."""
        return frozenset(image_id for group in self._groups for image_id in group)

    @property
    def quarantined(self) -> dict[str, int]:
        """Images that are no longer sent to an engine, with the number of engines that each image has killed."""
        return {name: number for name, number in self._num_kills.items() if number >= self._max_image_deaths}

    @property
    def has_survivor(self) -> bool:
        """Whether any image of the shard was visited without a death."""
        return self._has_survivor

    @property
    def num_images(self) -> int:
        """The number of images that an engine has to visit, including those in quarantine."""
        return len(self._images)

    @property
    def knowledge(self) -> Suspects:
        """What is known about the shard."""
        return Suspects(tuple(self._groups), frozenset(self._cleared), dict(self._num_kills), self._has_survivor)

    def next_group(self) -> tuple[str, ...]:
        """The group to visit next; empty if no group is left. Called after the images outside groups were visited."""
        if self._others():
            self._has_survivor = True
        groups = [group for group in self._divided if group in self._groups] or self._groups
        return self._random.choices(groups, weights=[len(group) for group in groups])[0] if groups else ()

    def survive(self, group: tuple[str, ...]) -> None:
        """Record that an engine has survived a group."""
        self._groups.remove(group)
        self._cleared.update(group)
        self._has_survivor = True

    def die_in_group(self, group: tuple[str, ...], in_engine: Collection[str] | None) -> None:
        """Record the death of an engine that held only this group.

        Args:
            group: The group.
            in_engine: The images of the group that were in the engine; None if that is not known.
        """
        self._groups.remove(group)
        if len(group) == 1:
            self._blame(group[0])
            return
        guilty = tuple(name for name in group if in_engine is None or name in in_engine) or group
        rest = tuple(name for name in group if name not in guilty)
        self._divided = [*_divide(guilty), rest] if rest else _divide(guilty)
        self._groups += self._divided

    def die_among_others(self, in_engine: Collection[str] | None, is_only_shard: bool) -> None:
        """Record the death of an engine that held no group.

        Args:
            in_engine: The images of the shard that were in the engine; None if that is not known.
            is_only_shard: Whether all images in the engine were of this shard, so that one of them killed it.
        """
        present = tuple(name for name in self._others() if in_engine is None or name in in_engine)
        # The last kill must be in a group, because other images may have been visited here before this one.
        if is_only_shard and in_engine is not None and len(present) == 1 and not self._is_last_kill(present[0]):
            self._cleared.difference_update(present)
            self._blame(present[0])
            return
        unknown = tuple(name for name in present if name not in self._cleared)
        if not unknown:
            self.num_unexplained += 1
        if new := unknown or present:
            self._divided = _divide(new) if is_only_shard else [new]
            self._groups += self._divided
            self._cleared.difference_update(new)

    def _is_last_kill(self, image: str) -> bool:
        return self._num_kills[image] + 1 >= self._max_image_deaths

    def _blame(self, image: str) -> None:
        """Record the death of an engine that held only this image."""
        self._num_kills[image] += 1
        self._divided = [] if image in self.quarantined else [(image,)]
        self._groups += self._divided

    def _others(self) -> list[str]:
        """The images that are visited outside of groups."""
        left = self.suspects | self.quarantined.keys()
        return [image_id for image_id in self._images if image_id not in left]


def _divide(group: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Divide a group into parts of neighbours, because neighbours often kill engines for the same reason."""
    size = -(-len(group) // NUM_PARTS)
    return [group[start : start + size] for start in range(0, len(group), size)]
