"""Index a source: list its images once, in a fixed order, into an immutable manifest of shards."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict

from mpa_ray.config import SourceConfig
from mpa_ray.corpus.dedup_index import DedupIndex
from mpa_ray.corpus.places.places import Places
from mpa_ray.corpus.sources.open import open_source
from mpa_ray.errors import ConfigError
from mpa_ray.observability.progress import Progress
from mpa_ray.records import ImageRef
from mpa_ray.run.dataset import shard_name
from mpa_ray.run.run import CORPUS_MANIFEST, Manifest, Run


def check_source(config: SourceConfig, places: Places) -> None:
    """List the source until the first image that passes the filters.

    Raises:
        ConfigError: the source holds no image, or the filters leave out all images; names the filter.
    """
    selection = _Selection(config, places)
    if next(selection.images(), None) is None:
        raise selection.no_images_error()


def list_images(config: SourceConfig, places: Places, after: ImageRef | None = None) -> Iterator[ImageRef]:
    """The images that pass the filters, without reading them. The caller applies `limit`.

    Raises:
        ConfigError: the source, or a folder in it, cannot be listed.
    """
    return _Selection(config, places).images(after)


class _Selection:
    """The images of a source that pass the filters."""

    def __init__(self, config: SourceConfig, places: Places) -> None:
        self._config, self._places = config, places
        self._left_out: Counter[str] = Counter()
        """How many images each filter has left out so far."""

    def images(self, after: ImageRef | None = None) -> Iterator[ImageRef]:
        for ref in open_source(self._config, self._places).images(after):
            filter_name = self._filter_of(ref)
            if filter_name is None:
                yield ref
            else:
                self._left_out[filter_name] += 1

    def no_images_error(self) -> ConfigError:
        """The error to raise if `images` has yielded nothing."""
        if not self._left_out:
            endings = ", ".join(self._config.extensions) or "any"
            return ConfigError(
                "source.path",
                self._config.path,
                f"holds no images (endings looked for: {endings}).",
                "Check the path, source.kind and source.extensions.",
            )
        counts = self._left_out.most_common()
        first = counts[0][0]
        return ConfigError(
            f"source.{first}",
            getattr(self._config, first),
            f"leaves none of the {self._left_out.total()} images "
            f"(left out: {', '.join(f'{number} by {name}' for name, number in counts)}).",
            "Relax the filter, or give a source with other images.",
        )

    def _filter_of(self, ref: ImageRef) -> str | None:
        """The setting that leaves an image out; None if it passes."""
        config = self._config
        if ref.num_bytes is not None and ref.num_bytes < config.min_bytes:
            return "min_bytes"
        if ref.num_bytes is not None and ref.num_bytes > config.max_bytes:
            return "max_bytes"
        if config.fraction == 1.0:
            return None
        digest = hashlib.sha256(f"{config.seed}:{ref.image_id}".encode()).digest()
        return None if int.from_bytes(digest[:8]) < config.fraction * 2**64 else "fraction"


def index_source(config: SourceConfig, run: Run, places: Places) -> Manifest:
    """Write the corpus manifest; an existing manifest is left unchanged. Raises as `index_shards` does."""
    for _ in index_shards(config, run, places):
        pass
    return run.manifest()


def index_shards(config: SourceConfig, run: Run, places: Places) -> Iterator[str]:
    """Write the corpus manifest, and yield the name of each shard as soon as it can be read.

    Shards that an interrupted command or another driver has committed are kept, and listing continues after their last
    image. So no image is in the corpus twice, even if the source has changed in the meantime.

    Raises:
        ConfigError: the source cannot be listed, repeats an id, or has no image that passes the filters.
    """
    if run.is_indexed():
        yield from run.manifest().shards
        return
    unique, selection = _UniqueIds(config), _Selection(config, places)
    num_images = num_shards = 0
    last: ImageRef | None = None
    shards: Iterator[list[ImageRef]] | None = None
    with Progress("index", config.limit, "images", says_end=False) as progress:
        while config.limit is None or num_images < config.limit:
            name, listed = shard_name(num_shards), None
            if not run.corpus.is_committed(name):
                room = None if config.limit is None else config.limit - num_images
                shards = shards or cut(selection.images(last), config)
                listed = next(shards, None)
                if listed is None:
                    break
                listed = unique.checked(listed[:room], num_images)
                run.corpus.commit(name, listed)
            stored = run.corpus.read(name)
            if stored != listed:
                # Another driver, or an earlier command, has committed the shard.
                unique.checked(stored, num_images)
                shards = None
            last = stored[-1]
            num_images, num_shards = num_images + len(stored), num_shards + 1
            progress.advance(len(stored))
            yield name
    if num_shards == 0:
        raise selection.no_images_error()
    run.storage.create(CORPUS_MANIFEST, json.dumps(asdict(Manifest(num_images, num_shards))).encode())


def cut(refs: Iterator[ImageRef], config: SourceConfig) -> Iterator[list[ImageRef]]:
    """Cut images into shards of at most `shard_size` images and, as far as sizes are known, `max_shard_bytes`."""
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
    """Checks that the values of `id_column` do not repeat; ids that we assign never do."""

    def __init__(self, config: SourceConfig) -> None:
        self._column = config.id_column
        self._index = DedupIndex() if self._column is not None else None

    def checked(self, refs: list[ImageRef], num_before: int) -> list[ImageRef]:
        """Return the images unchanged. Raises ConfigError if an id occurred before."""
        if self._index is None:
            return refs
        claims = [
            (hashlib.sha256(ref.image_id.encode()).digest()[:16], num_before + i, ref.uri) for i, ref in enumerate(refs)
        ]
        for ref, other in zip(refs, self._index.claim(claims), strict=True):
            if other is not None:
                raise ConfigError(
                    "source.id_column",
                    self._column,
                    f"{ref.image_id!r} occurs twice: {other}, {ref.uri}.",
                    "Choose a column without repeated values.",
                )
        return refs
