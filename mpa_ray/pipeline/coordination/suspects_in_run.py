"""What a pass knows about images that may kill engines, kept in the run for the next driver."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import Protocol

from mpa_ray.run.suspects import Suspects, SuspectsFile

logger = logging.getLogger(__name__)


class SuspectsFiles(Protocol):
    """The methods of `mpa_ray.run.dataset.ShardTarget` that this module calls."""

    def suspects_file(self, shard: str, generation: int) -> SuspectsFile: ...

    def list_suspects(self) -> set[str]: ...


class SuspectsInRun:
    """The files in which a pass stores each shard's suspects. If no engine dies, the pass only lists them, and only
    once."""

    def __init__(self, files: SuspectsFiles | None, engine: str = "") -> None:
        """If `files` is None, nothing is read or written. `engine` identifies the engine; see `Suspects.engine`."""
        self._files, self._engine = files, engine
        self._listed: asyncio.Task[set[str]] | None = None
        self._open: dict[str, SuspectsFile] = {}
        self._existing: set[str] = set()
        """Shards that have a file."""

    async def read(self, shard: str, generation: int) -> Suspects:
        """What earlier drivers have found out about a shard."""
        if self._files is None:
            return Suspects()
        self._listed = self._listed or asyncio.create_task(asyncio.to_thread(_listed, self._files))
        paths = await self._listed
        file = self._open[shard] = self._files.suspects_file(shard, generation)
        if file.path not in paths:
            return Suspects()
        self._existing.add(shard)
        return (await asyncio.to_thread(file.read)).for_engine(self._engine)

    async def write(self, shard: str, suspects: Suspects) -> None:
        """Write what is known about a shard. Does nothing if the shard was not read before."""
        if (file := self._open.get(shard)) is not None:
            self._existing.add(shard)
            await asyncio.to_thread(file.write, replace(suspects, engine=self._engine))

    async def delete(self, shard: str) -> None:
        """Remove the file of a shard."""
        file = self._open.pop(shard, None)
        if file is not None and shard in self._existing:
            self._existing.discard(shard)
            await asyncio.to_thread(file.delete)


def _listed(files: SuspectsFiles) -> set[str]:
    try:
        return files.list_suspects()
    except OSError as error:
        logger.warning("the files of images that may kill engines cannot be listed and are ignored: %s", error)
        return set()
