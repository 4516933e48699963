"""Index a source: list its images once, in a fixed order, into an immutable manifest of shards."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from mpa_ray.config import SourceConfig, resolve_path
from mpa_ray.errors import ConfigError
from mpa_ray.records import ImageRef
from mpa_ray.store.dataset import shard_name
from mpa_ray.store.run import Manifest, Run


def check_source(source: SourceConfig) -> None:
    """Raises ConfigError where the source cannot give a single image."""
    root = Path(resolve_path(source.path))
    if not root.is_dir():
        raise ConfigError("source.path", source.path, "is not a folder.", "Give a folder with images.")
    if next(list_images(source), None) is None:
        endings = ", ".join(source.extensions) or "any"
        raise ConfigError("source.path", source.path, f"holds no images (endings looked for: {endings}).",
                          "Check the path and source.extensions.")  # fmt: skip


def list_images(source: SourceConfig) -> Iterator[ImageRef]:
    """The images of a folder and its sub-folders, ordered by name within each folder, without reading them."""
    root = Path(resolve_path(source.path)).absolute()
    endings = {f".{e.lower().lstrip('.')}" for e in source.extensions}
    return islice(_walk(root, root, endings), source.limit)


def _walk(root: Path, folder: Path, endings: set[str]) -> Iterator[ImageRef]:
    with os.scandir(folder) as found:
        entries = sorted(found, key=lambda e: e.name)
    for entry in entries:
        path = Path(entry.path)
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(root, path, endings)
        elif entry.is_file() and (not endings or path.suffix.lower() in endings):
            yield ImageRef(path.relative_to(root).as_posix(), str(path), entry.stat().st_size)


def index_source(source: SourceConfig, run: Run) -> Manifest:
    """Write the corpus manifest; a corpus that is already indexed is left as it is."""
    if run.storage.exists("corpus/manifest.json"):
        return run.manifest()
    num_images = num_shards = 0
    for index, refs in enumerate(batched_images(source)):
        run.corpus.commit(shard_name(index), refs)
        num_images, num_shards = num_images + len(refs), index + 1
    run.write_json("corpus/manifest.json", {"num_images": num_images, "num_shards": num_shards})
    return run.manifest()


def batched_images(source: SourceConfig) -> Iterator[tuple[ImageRef, ...]]:
    refs = list_images(source)
    while shard := tuple(islice(refs, source.shard_size)):
        yield shard
