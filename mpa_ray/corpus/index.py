"""Indexes a source: lists its images once, in a fixed order, and stores the list as shards that never change."""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice

from mpa_ray.config import SourceConfig
from mpa_ray.corpus.dedup_index import DedupIndex
from mpa_ray.corpus.named_files import NUM_CHECKED, check_named_files, is_missing
from mpa_ray.corpus.places.places import Places
from mpa_ray.corpus.source_root import SourceRoot
from mpa_ray.corpus.sources.left_out import LeftOut
from mpa_ray.corpus.sources.open import KINDS_OF_TABLES, kind_of, open_source
from mpa_ray.corpus.sources.source import Listed
from mpa_ray.errors import ConfigError, RunError, uri_in
from mpa_ray.observability.progress import Progress
from mpa_ray.records import ImageRef
from mpa_ray.run.left_out_counts import add_left_out, left_out_in_words
from mpa_ray.run.manifest import Manifest
from mpa_ray.run.marker import Commit
from mpa_ray.run.markers import shard_name
from mpa_ray.run.run import CORPUS_MANIFEST, Run
from mpa_ray.run.sealed_json import sealed

_FILTERS = {
    "min_bytes": LeftOut("smaller than source.min_bytes", "min_bytes"),
    "max_bytes": LeftOut("larger than source.max_bytes", "max_bytes"),
    "fraction": LeftOut("not in source.fraction", "fraction"),
}
"""The filters of images, each with the name of its setting as the key."""


def check_source(config: SourceConfig, places: Places) -> None:
    """List the source up to the first image that passes the filters.

    Raises:
        ConfigError: the source holds no image, or the filters leave out all images. The error names the filter.
    """
    selection = Selection(config, places)
    if next(selection.images(), None) is None:
        raise selection.no_images_error()


def check_first_files(config: SourceConfig, places: Places) -> None:
    """Look up the files that the first entries of a list or table name. Other sources are not checked.

    Raises:
        ConfigError: none of these files exists. The error names the first entry.
    """
    images = Selection(config, places).images()
    first = next(images, None)
    if first is None or not is_missing(first, config, places):
        return
    if (kind := kind_of(config, places)) in KINDS_OF_TABLES:
        check_named_files(config, kind, [first, *islice(images, NUM_CHECKED - 1)], places)


class Selection:
    """The images of a source that pass the filters."""

    def __init__(self, config: SourceConfig, places: Places) -> None:
        self._config, self._places = config, places
        self._left_out: Counter[LeftOut] = Counter()
        """How many files have been left out so far, for each label and filter."""

    def images(self) -> Iterator[ImageRef]:
        """Yield the images, in the source's order.

        Raises:
            ConfigError: the source, or a folder in it, cannot be listed.
        """
        return (item for item in self.listing() if isinstance(item, ImageRef))

    def listing(self, after: ImageRef | None = None) -> Iterator[Listed]:
        """Yield the images, starting after `after`, and the files left out between them. Raises as `images` does."""
        with uri_in("source.path", self._config.path):
            for item in open_source(self._config, self._places).images(after):
                left_out = item if isinstance(item, LeftOut) else self._filtered(item)
                if left_out is not None:
                    self._left_out[left_out] += 1
                yield left_out or item

    def no_images_error(self) -> ConfigError:
        """The error to raise if `images` has yielded nothing."""
        filtered = Counter(
            {item.setting: number for item, number in self._left_out.items() if item.setting in _FILTERS}
        )
        if not filtered:
            return self._empty_error()
        names = [f"source.{name}: {number}" for name, number in filtered.most_common()]
        first = str(filtered.most_common(1)[0][0])
        return ConfigError(
            f"source.{first}",
            getattr(self._config, first),
            f"leaves none of the {filtered.total()} images (left out: {', '.join(names)}).",
            "Relax the filter, or give a source with other images.",
        )

    def _empty_error(self) -> ConfigError:
        """The error for a source that has no images, even without the filters."""
        counts = Counter({item.label: number for item, number in self._left_out.items()})
        more = left_out_in_words(counts) if counts else ""
        kind = kind_of(self._config, self._places)
        if kind in KINDS_OF_TABLES:
            problem = "has no row with an image" if counts else "has 0 rows"
            details, remedy = more, "Give a table with rows, and check source.image_column and source.kind."
        else:
            endings = ", ".join(self._config.extensions) or "any"
            problem, details = "holds no images", "; ".join(filter(None, [f"expected endings: {endings}", more]))
            remedy = "Check the path, source.kind, source.extensions and source.exclude."
        problem += f" ({details})." if details else "."
        return ConfigError("source.path", self._config.path, problem, remedy)

    def _filtered(self, ref: ImageRef) -> LeftOut | None:
        """Return the filter that leaves an image out; None if the image passes all filters."""
        config = self._config
        if ref.num_bytes is not None and ref.num_bytes < config.min_bytes:
            return _FILTERS["min_bytes"]
        if ref.num_bytes is not None and ref.num_bytes > config.max_bytes:
            return _FILTERS["max_bytes"]
        if config.fraction == 1.0:
            return None
        digest = hashlib.sha256(f"{config.seed}:{ref.image_id}".encode()).digest()
        return None if int.from_bytes(digest[:8]) < config.fraction * 2**64 else _FILTERS["fraction"]


def index_source(config: SourceConfig, run: Run, places: Places) -> Manifest:
    """Write the corpus manifest; an existing manifest is left unchanged. Raises as `index_shards` does."""
    for _ in index_shards(config, run, places):
        pass
    return run.manifest()


def index_shards(config: SourceConfig, run: Run, places: Places) -> Iterator[str]:
    """Write the corpus manifest, and yield the name of each shard as soon as it can be read.

    Shards that an interrupted command or another driver has committed are kept, and listing continues after their last
    image. Therefore, no image is in the corpus twice, even if the source has changed in the meantime.

    Raises:
        ConfigError: the source cannot be listed, repeats an id, or has no image that passes the filters.
    """
    if run.is_indexed():
        yield from run.manifest().shards
        return
    unique, selection = _UniqueIds(config), Selection(config, places)
    num_images = num_shards = 0
    left_out: Counter[str] = Counter()
    last: ImageRef | None = None
    shards: Iterator[ListedShard] | None = None
    with Progress("index", config.limit, "images", says_end=False, is_limit=True) as progress:
        while config.limit is None or num_images < config.limit:
            name, listed = shard_name(num_shards), None
            marker = run.corpus.newest_marker(name)
            if marker is None or marker.is_withdrawn:
                room = None if config.limit is None else config.limit - num_images
                if marker is not None:
                    listed, shards = _list_again(selection, config, last, room, marker), None
                else:
                    shards = shards or cut(at_most(room, selection.listing(last)), config)
                    listed = next(shards, _NOTHING)
                if not listed.images:
                    add_left_out(left_out, listed.left_out)
                    break
                unique.check(listed.images, num_images)
                _check_not_repeated(listed.images, run, shard_name(num_shards + 1))
                if num_shards == 0:
                    SourceRoot.of(config).record(run)
                run.corpus.commit_missing(name, listed.images, left_out=listed.left_out)
            stored = run.corpus.read(name)
            if listed is None or stored != listed.images:
                # Another driver, or an earlier command, has committed the shard.
                unique.check(stored, num_images)
                shards = None
                commit = run.corpus.commit_of(name)
                add_left_out(left_out, commit.left_out if commit else {})
            else:
                add_left_out(left_out, listed.left_out)
            last = stored[-1]
            num_images, num_shards = num_images + len(stored), num_shards + 1
            progress.advance(len(stored))
            yield name
    if num_shards == 0:
        raise selection.no_images_error()
    # Another driver may have committed all of these shards.
    run.corpus.check_fingerprint()
    manifest = Manifest(num_images, num_shards, dict(left_out.most_common()))
    run.storage.create(CORPUS_MANIFEST, json.dumps(sealed(asdict(manifest))).encode())
    # A repair may have moved the file away while it kept the first shard.
    SourceRoot.of(config).record_if_missing(run)


@dataclass(frozen=True)
class ListedShard:
    """The images of a shard, and the number of files left out since the last image of the previous shard."""

    images: list[ImageRef]
    left_out: Counter[str]
    """The number of files for each label. Files that are left out after the last image of the source are counted in one
    more `ListedShard`, which has no images."""


_NOTHING = ListedShard([], Counter())


def _list_again(
    selection: Selection, config: SourceConfig, after: ImageRef | None, room: int | None, withdrawn: Commit
) -> ListedShard:
    """List the images of a shard whose rows were damaged. The shard gets as many images as it had, if that is known."""
    if not withdrawn.num_rows:
        return next(cut(at_most(room, selection.listing(after)), config), _NOTHING)
    whole = config.model_copy(update={"shard_size": withdrawn.num_rows, "max_shard_bytes": sys.maxsize})
    return next(cut(at_most(withdrawn.num_rows, selection.listing(after)), whole), _NOTHING)


def _check_not_repeated(images: Sequence[ImageRef], run: Run, following: str) -> None:
    """Raise RunError if an image is also in the following shard, because the source has changed since it was listed."""
    if run.corpus.commit_of(following) is None:
        return
    known = {ref.image_id for ref in run.corpus.read(following)}
    if repeated := [ref.image_id for ref in images if ref.image_id in known]:
        raise RunError(
            f"{run.storage.root}: the damaged images of the corpus cannot be listed again, because the source has "
            f"changed: {repeated[0]!r} is in the following shard {following}. Restore the source's files, or give "
            "another run_dir."
        )


def cut(listing: Iterable[Listed], config: SourceConfig) -> Iterator[ListedShard]:
    """Cut a listing into shards of at most `shard_size` images and, if the sizes are known, at most `max_shard_bytes`
    bytes. A larger image is in a shard of its own."""
    shard = ListedShard([], Counter())
    since_last: Counter[str] = Counter()
    num_bytes = 0
    for item in listing:
        if isinstance(item, LeftOut):
            add_left_out(since_last, {item.label: 1})
            continue
        num_bytes += item.num_bytes or 0
        if shard.images and (len(shard.images) == config.shard_size or num_bytes > config.max_shard_bytes):
            yield shard
            shard, num_bytes = ListedShard([], Counter()), item.num_bytes or 0
        shard.images.append(item)
        add_left_out(shard.left_out, since_last)
        since_last.clear()
    if shard.images:
        yield shard
    if since_last:
        yield ListedShard([], since_last)


def at_most(num_images: int | None, listing: Iterator[Listed]) -> Iterator[Listed]:
    """End a listing after `num_images` images; None sets no limit."""
    num_left = num_images
    for item in listing:
        yield item
        if num_left is not None and isinstance(item, ImageRef):
            num_left -= 1
            if not num_left:
                return


class _UniqueIds:
    """Checks that no value of `id_column` occurs twice. Without `id_column`, generated ids are unique, so nothing is
    checked."""

    def __init__(self, config: SourceConfig) -> None:
        self._column = config.id_column
        self._index = DedupIndex() if self._column is not None else None

    def check(self, refs: list[ImageRef], num_before: int) -> None:
        """Raise ConfigError if another image has the id of one of these images. `num_before` is the number of images
        before them."""
        if self._index is None:
            return
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
