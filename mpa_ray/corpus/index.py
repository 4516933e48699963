"""Index a source: list its images once, in a fixed order, into an immutable manifest of shards."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import chain, dropwhile, islice

from mpa_ray.config import SourceConfig
from mpa_ray.corpus.files import Files
from mpa_ray.errors import ConfigError
from mpa_ray.progress import Progress
from mpa_ray.records import ImageRef
from mpa_ray.store.dataset import shard_name
from mpa_ray.store.run import Manifest, Run


def check_source(source: SourceConfig, files: Files) -> None:
    """Raises ConfigError where the source cannot give a single image."""
    if next(list_images(source, files), None) is None:
        endings = ", ".join(source.extensions) or "any"
        raise ConfigError("source.path", source.path, f"holds no images (endings looked for: {endings}).",
                          "Check the path and source.extensions.")  # fmt: skip


def list_images(source: SourceConfig, files: Files) -> Iterator[ImageRef]:
    """The source's images, ordered by the UTF-8 bytes of their ids, without reading them.

    Raises:
        ConfigError: the source, or a folder in it, cannot be listed.
    """
    endings = tuple(f".{e.lower().lstrip('.')}" for e in source.extensions)
    return (ref for ref in files.walk(source.path) if not endings or ref.image_id.lower().endswith(endings))


def index_source(source: SourceConfig, run: Run, files: Files) -> Manifest:
    """Write the corpus manifest; a corpus that is already indexed is left as it is.

    A shard that is committed, by a killed command or by another driver, is taken as it is, and listing goes on behind
    its last image: whatever is added to the source meanwhile, no image is in the corpus twice.
    """
    if run.storage.exists("corpus/manifest.json"):
        return run.manifest()
    num_images = num_shards = 0
    listed: Iterable[ImageRef] = list_images(source, files)
    last = ""
    with Progress("index", source.limit, "images") as progress:
        while room := source.shard_size if source.limit is None else min(source.shard_size, source.limit - num_images):
            shard, taken = shard_name(num_shards), list[ImageRef]()
            if not run.corpus.is_committed(shard):
                listed = dropwhile(lambda ref, last=last: ref.image_id.encode() <= last.encode(), listed)  # type: ignore[misc]
                taken = list(islice(listed, room))
                if not taken:
                    break
                run.corpus.commit(shard, taken)
            found = run.corpus.read(shard)
            if found != taken:
                listed = chain(taken, listed)
            last = found[-1].image_id
            num_images, num_shards = num_images + len(found), num_shards + 1
            progress.advance(len(found))
    counts = {"num_images": num_images, "num_shards": num_shards}
    run.storage.create("corpus/manifest.json", json.dumps(counts).encode())
    return run.manifest()
