"""Index a source: list its images once, in a fixed order, into an immutable manifest of shards."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator

from mpa_ray.config import SourceConfig
from mpa_ray.corpus.dedup_index import DedupIndex
from mpa_ray.corpus.places.places import Places
from mpa_ray.corpus.sources.open import open_source
from mpa_ray.errors import ConfigError
from mpa_ray.observability.progress import Progress
from mpa_ray.records import ImageRef
from mpa_ray.run.dataset import shard_name
from mpa_ray.run.run import Manifest, Run


def check_source(config: SourceConfig, places: Places) -> None:
    """Raises ConfigError where the source cannot give a single image."""
    if next(open_source(config, places).images(), None) is None:
        endings = ", ".join(config.extensions) or "any"
        raise ConfigError(
            "source.path",
            config.path,
            f"holds no images (endings looked for: {endings}).",
            "Check the path, source.kind and source.extensions.",
        )


def list_images(config: SourceConfig, places: Places, after: ImageRef | None = None) -> Iterator[ImageRef]:
    """The images that a configuration takes of its source, without reading them; its `limit` is left to the caller.

    Raises:
        ConfigError: the source, or a folder in it, cannot be listed.
    """
    return (ref for ref in open_source(config, places).images(after) if _is_taken(ref, config))


def _is_taken(ref: ImageRef, config: SourceConfig) -> bool:
    if ref.num_bytes is not None and not config.min_bytes <= ref.num_bytes <= config.max_bytes:
        return False
    if config.fraction == 1.0:
        return True
    lot = hashlib.sha256(f"{config.seed}:{ref.image_id}".encode()).digest()
    return int.from_bytes(lot[:8]) < config.fraction * 2**64


def index_source(config: SourceConfig, run: Run, places: Places) -> Manifest:
    """Write the corpus manifest; a corpus that is already indexed is left as it is."""
    for _ in index_shards(config, run, places):
        pass
    return run.manifest()


def index_shards(config: SourceConfig, run: Run, places: Places) -> Iterator[str]:
    """Write the corpus manifest, and name each shard once it can be read.

    A shard that is committed, by a killed command or by another driver, is taken as it is, and listing goes on behind
    its last image: whatever is added to the source meanwhile, no image is in the corpus twice.
    """
    if run.storage.exists("corpus/manifest.json"):
        yield from run.manifest().shards
        return
    unique = _UniqueIds(config)
    num_images = num_shards = 0
    last: ImageRef | None = None
    shards: Iterator[list[ImageRef]] | None = None
    with Progress("index", config.limit, "images") as progress:
        while config.limit is None or num_images < config.limit:
            shard, taken = shard_name(num_shards), None
            if not run.corpus.is_committed(shard):
                room = None if config.limit is None else config.limit - num_images
                shards = shards or cut(list_images(config, places, last), config)
                taken = next(shards, None)
                if taken is None:
                    break
                taken = unique.checked(taken[:room], num_images)
                run.corpus.commit(shard, taken)
            found = run.corpus.read(shard)
            if found != taken:
                # Another driver's, or an earlier command's.
                unique.checked(found, num_images)
                shards = None
            last = found[-1]
            num_images, num_shards = num_images + len(found), num_shards + 1
            progress.advance(len(found))
            yield shard
    counts = {"num_images": num_images, "num_shards": num_shards}
    run.storage.create("corpus/manifest.json", json.dumps(counts).encode())


def cut(refs: Iterator[ImageRef], config: SourceConfig) -> Iterator[list[ImageRef]]:
    """Shards of at most `shard_size` images and `max_shard_bytes`, as far as sizes are known."""
    shard: list[ImageRef] = []
    num_bytes = 0
    for ref in refs:
        num_bytes += ref.num_bytes or 0
        if shard and (len(shard) == config.shard_size or num_bytes > config.max_shard_bytes):
            yield shard
            shard, num_bytes = [], ref.num_bytes or 0
        shard.append(ref)
    if shard:
        yield shard


class _UniqueIds:
    """Ids of the user's choosing may repeat; ours cannot."""

    def __init__(self, config: SourceConfig) -> None:
        self._column = config.id_column
        self._seen = DedupIndex() if self._column is not None else None

    def checked(self, refs: list[ImageRef], num_before: int) -> list[ImageRef]:
        """The same images. Raises ConfigError where an id is there already."""
        if self._seen is None:
            return refs
        claims = [
            (hashlib.sha256(r.image_id.encode()).digest()[:16], num_before + i, r.uri) for i, r in enumerate(refs)
        ]
        for ref, other in zip(refs, self._seen.claim(claims), strict=True):
            if other is not None:
                raise ConfigError(
                    "source.id_column",
                    self._column,
                    f"{ref.image_id!r} is there twice: {other}, {ref.uri}.",
                    "Choose a column without repetitions.",
                )
        return refs
