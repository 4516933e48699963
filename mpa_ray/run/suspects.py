"""What a run knows about images that may kill engines, in shards that are not committed yet.

A small file for each shard and generation stores this knowledge. Without the file, or with an old one, the same images
would be found again, but more engines would die. So drivers may replace each other's files, and a damaged file is
ignored.

The file identifies the engine that died, because an engine with other settings or libraries may survive the images.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mpa_ray.errors import CannotWrite
from mpa_ray.run.sealed_json import parse_sealed, sealed
from mpa_ray.storage.storage import Storage

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Suspects:
    """What the deaths of engines have shown about the images of a shard."""

    groups: tuple[tuple[str, ...], ...] = ()
    """Disjoint groups of images that may have killed an engine."""
    cleared: frozenset[str] = frozenset()
    """Images that were in a dead engine, and were visited later without a death."""
    num_kills: Mapping[str, int] = field(default_factory=dict)
    """How many engines each image has killed while it was alone in them."""
    has_survivor: bool = False
    """Whether any image of the shard was visited without a death."""
    engine: str = ""
    """Identifies the kind, settings, model and libraries of the engines that died."""
    last_error: str = ""
    """The cause of the latest death."""

    @property
    def is_empty(self) -> bool:
        return not (self.groups or self.cleared or self.num_kills)

    def for_engine(self, engine: str) -> Suspects:
        """What is known about the images for an engine. If another engine died on them, they only become suspects."""
        if engine == self.engine:
            return self
        suspects = {image_id for group in self.groups for image_id in group}
        killers = tuple((image_id,) for image_id in self.num_kills if image_id not in suspects)
        return Suspects(self.groups + killers, engine=engine)

    def joined(self, other: Suspects) -> Suspects:
        """Add the cleared images of `other`, and keep the larger of the two kill counts of each image.

        If `other` is about another engine, nothing is added.
        """
        if other.engine != self.engine:
            return self
        suspects = {image_id for group in self.groups for image_id in group}
        images = self.num_kills.keys() | other.num_kills.keys()
        num_kills = {name: max(self.num_kills.get(name, 0), other.num_kills.get(name, 0)) for name in images}
        cleared = (self.cleared | other.cleared) - suspects
        has_survivor, last_error = self.has_survivor or other.has_survivor, self.last_error or other.last_error
        return Suspects(self.groups, cleared, num_kills, has_survivor, self.engine, last_error)

    def to_json(self) -> bytes:
        """The content of the file."""
        values = {
            "groups": self.groups,
            "cleared": sorted(self.cleared),
            "num_kills": dict(sorted(self.num_kills.items())),
            "has_survivor": self.has_survivor,
            "engine": self.engine,
            "last_error": self.last_error,
        }
        return json.dumps(sealed(values)).encode()

    @classmethod
    def from_json(cls, content: bytes) -> Suspects:
        """Read the content of a file. Raises ValueError if it is damaged."""
        values = parse_sealed(content)
        try:
            groups = tuple(tuple(map(_text, group)) for group in map(_list, values["groups"]))
            suspects = cls(
                groups,
                frozenset(map(_text, _list(values["cleared"]))),
                {name: _number(number) for name, number in values["num_kills"].items()},
                bool(values["has_survivor"]),
                # Earlier versions did not write the last two values.
                _text(values.get("engine", "")),
                _text(values.get("last_error", "")),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a file of suspects: {error}") from error
        images = [image_id for group in groups for image_id in group]
        if len(images) != len(set(images)) or not all(groups):
            raise ValueError("not a file of suspects: its groups overlap or are empty")
        return suspects


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"{type(value).__name__} in place of a list")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{type(value).__name__} in place of a text")
    return value


def _number(value: Any) -> int:
    if not isinstance(value, int) or value < 0:
        raise TypeError(f"{type(value).__name__} in place of a number of deaths")
    return value


@dataclass(frozen=True)
class SuspectsFile:
    """The file of one shard and generation."""

    storage: Storage
    path: str

    def read(self) -> Suspects:
        """The content of the file; an empty `Suspects` if there is no file, or if the file cannot be read."""
        try:
            return Suspects.from_json(self.storage.read(self.path))
        except FileNotFoundError:
            return Suspects()
        except (OSError, ValueError) as error:
            logger.warning("%s is ignored: %s", self.path, error)
            return Suspects()

    def write(self, suspects: Suspects) -> None:
        """Replace the file with `suspects` joined with the file's content. If this fails, only a warning is logged."""
        try:
            self.storage.write(self.path, suspects.joined(self.read()).to_json())
        except (CannotWrite, OSError) as error:
            logger.warning("%s cannot be written: %s", self.path, error)

    def delete(self) -> None:
        """Remove the file if it exists. If the file cannot be removed now, `audit --collect` removes it later."""
        try:
            self.storage.delete(self.path)
        except OSError as error:
            logger.warning("%s cannot be deleted: %s", self.path, error)
