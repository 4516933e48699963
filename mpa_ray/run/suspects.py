"""What a run knows of images that may kill engines, for shards that are not committed yet.

The knowledge is in a small file for each shard and generation. The file only saves deaths of engines: if it is missing
or old, the same images are found again. So drivers may replace each other's files, and a damaged file is ignored.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

from mpa_ray.errors import CannotWrite
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

    @property
    def is_empty(self) -> bool:
        return not (self.groups or self.cleared or self.num_kills)

    def joined(self, other: Suspects) -> Suspects:
        """Add the cleared images of `other`. Of the two numbers of kills of an image, keep the larger."""
        suspects = {image_id for group in self.groups for image_id in group}
        images = self.num_kills.keys() | other.num_kills.keys()
        num_kills = {name: max(self.num_kills.get(name, 0), other.num_kills.get(name, 0)) for name in images}
        cleared = (self.cleared | other.cleared) - suspects
        return Suspects(self.groups, cleared, num_kills, self.has_survivor or other.has_survivor)

    def to_json(self) -> bytes:
        """The content of the file."""
        values = {
            "groups": self.groups,
            "cleared": sorted(self.cleared),
            "num_kills": dict(sorted(self.num_kills.items())),
            "has_survivor": self.has_survivor,
        }
        return json.dumps(values).encode()

    @classmethod
    def from_json(cls, content: bytes) -> Suspects:
        """Read the content of a file. Raises ValueError if it is damaged."""
        try:
            values = json.loads(content)
            return cls(
                tuple(tuple(map(str, group)) for group in values["groups"]),
                frozenset(map(str, values["cleared"])),
                {str(name): int(number) for name, number in values["num_kills"].items()},
                bool(values["has_survivor"]),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a file of suspects: {error}") from error


@dataclass(frozen=True)
class SuspectsFile:
    """The file of one shard and generation."""

    storage: Storage
    path: str

    def read(self) -> Suspects:
        """What the file says; nothing if there is no file, or it cannot be read."""
        try:
            return Suspects.from_json(self.storage.read(self.path))
        except FileNotFoundError:
            return Suspects()
        except (OSError, ValueError) as error:
            logger.warning("%s is ignored: %s", self.path, error)
            return Suspects()

    def write(self, suspects: Suspects) -> None:
        """Replace the file, but keep what another driver has written. Logs a warning if the file cannot be written."""
        try:
            self.storage.write(self.path, suspects.joined(self.read()).to_json())
        except (CannotWrite, OSError) as error:
            logger.warning("%s cannot be written: %s", self.path, error)

    def delete(self) -> None:
        """Remove the file if it exists. If that fails, `audit --collect` removes it."""
        try:
            self.storage.delete(self.path)
        except OSError as error:
            logger.warning("%s cannot be deleted: %s", self.path, error)
