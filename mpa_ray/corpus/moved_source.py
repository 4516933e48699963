"""Continues a run whose images have moved to another place since the corpus was indexed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mpa_ray.config import RunConfig
from mpa_ray.corpus.index import Selection
from mpa_ray.corpus.locator import Locator
from mpa_ray.corpus.places.places import Places
from mpa_ray.corpus.read import Content, Reader
from mpa_ray.corpus.source_root import MovedRoot, SourceRoot
from mpa_ray.errors import ConfigError, TransientError
from mpa_ray.imaging.decode import ImageProblem
from mpa_ray.records import ImageDigest, ImageRef, Reason
from mpa_ray.run.markers import shard_name
from mpa_ray.run.run import Run

_NUM_CHECKED = 3
"""How many images of the first shard are compared. The last image of the corpus is compared, too, because an incomplete
copy usually lacks it."""


def moved_root(config: RunConfig, run: Run) -> MovedRoot | None:
    """Return the old and the new root of the corpus's images; None if the images have not moved.

    The result is also None if the new root is a folder that this machine does not have. The images may then still be
    readable at the old root.
    """
    recorded = SourceRoot.recorded(run)
    if recorded is None or not run.is_indexed():
        return None
    current = SourceRoot.of(config.source)
    if current.names != recorded.names or current.root == recorded.root:
        return None
    is_local = "://" not in current.root
    return None if is_local and not Path(current.root).is_dir() else MovedRoot(recorded.root, current.root)


def as_indexed(config: RunConfig, run: Run) -> RunConfig:
    """If the current source path names the same files as the indexed path, return the configuration with the indexed
    path. Otherwise, return it unchanged.

    The images of a completely indexed corpus may move, so only the names below the roots are compared. Until then, the
    roots must be equal, too.
    """
    recorded, current = SourceRoot.recorded(run), SourceRoot.of(config.source)
    if recorded is None or recorded.names != current.names:
        return config
    if recorded.root != current.root and not run.is_indexed():
        return config
    source = config.source.model_copy(update={"path": recorded.path})
    return config.model_copy(update={"source": source})


def check_moved(config: RunConfig, run: Run, reader: Reader) -> None:
    """If the images of the corpus have moved, check a few of them at the new place.

    Raises:
        ConfigError: images are missing or differ, or the corpus is not completely indexed.
        TransientError: images cannot be read, for a reason that may be temporary.
    """
    recorded, current = SourceRoot.recorded(run), SourceRoot.of(config.source)
    if recorded is None or recorded.is_same_place(current):
        return
    if not run.is_indexed():
        _check_not_begun(config, run, recorded, current)
    elif reader.moved is not None:
        _Check(config, run, recorded, reader, reader.moved).check()


def _check_not_begun(config: RunConfig, run: Run, recorded: SourceRoot, current: SourceRoot) -> None:
    if recorded.names == current.names and run.corpus.is_committed(shard_name(0)):
        raise ConfigError(
            "source.path",
            config.source.path,
            f"differs from {recorded.root}, where indexing began. Images may be moved only after all of them "
            "are indexed.",
            f"Set it to {recorded.full_path} and run mpa-ray index first, or give a new run_dir.",
        )


@dataclass(frozen=True)
class _Sample:
    """An image of the corpus that is below the old root."""

    ref: ImageRef
    sha256: str | None
    """The digest of the file that the teacher saw, if it is known."""
    was_readable: bool
    """False if the image may have been unreadable before it moved."""

    def problem(self, content: Content) -> str | None:
        """What is wrong with the image at the new place; None if no difference from the indexed image is known."""
        if isinstance(content, ImageProblem):
            return f"cannot be read ({content.detail})"
        if self.sha256 is not None:
            return None if hashlib.sha256(content).hexdigest() == self.sha256 else "has a different SHA-256"
        if self.ref.num_bytes not in (None, len(content)):
            return f"has {len(content)} bytes instead of {self.ref.num_bytes}"
        return None


@dataclass(frozen=True)
class _Check:
    """Compares a few images of an indexed corpus with those at the new place."""

    config: RunConfig
    run: Run
    recorded: SourceRoot
    reader: Reader
    moved: MovedRoot

    def check(self) -> None:
        samples = list(self._samples())
        contents = self.reader.read([sample.ref.uri for sample in samples])
        for content in contents:
            if isinstance(content, ImageProblem) and content.reason == Reason.STORAGE:
                raise TransientError(content.detail)
        # A list may name files that were missing even at the old place, so one unreadable image need not be an error.
        none_readable = all(isinstance(content, ImageProblem) for content in contents)
        for sample, content in zip(samples, contents, strict=True):
            problem = sample.problem(content)
            if problem is not None and (isinstance(content, bytes) or sample.was_readable or none_readable):
                raise self._error(f"{self.reader.current_uri(sample.ref.uri)} {problem}")
        self._check_listing(samples)

    def _samples(self) -> Iterator[_Sample]:
        shards = self.run.manifest().shards
        for shard, picked in ((shards[0], slice(_NUM_CHECKED)), (shards[-1], slice(-1, None))):
            digests = self._digests(shard)
            refs = [ref for ref in self.run.corpus.read(shard) if self._moves(ref)]
            for ref in refs[picked]:
                sha256 = digests.get(ref.image_id) if digests is not None else None
                yield _Sample(ref, sha256, ref.num_bytes is not None if digests is None else sha256 is not None)

    def _digests(self, shard: str) -> dict[str, str | None] | None:
        """The digests of a shard's images by their ids; None if the shard is not annotated."""
        if not self.run.annotations.is_committed(shard):
            return None
        return {row.image_id: row.content_sha256 for row in self.run.annotations.columns(shard, ImageDigest)}

    def _moves(self, ref: ImageRef) -> bool:
        return self.moved.moves(Locator.parse(ref.uri).uri)

    def _check_listing(self, samples: Sequence[_Sample]) -> None:
        """Compare the first image of the source with the first image of the corpus. The ids may differ, since new
        images may come first."""
        places = Places(self.config.object_store)
        listed = next(Selection(self.config.source, places).images(), None)
        indexed = self.run.corpus.read(shard_name(0))[0]
        if listed is None or listed.image_id != indexed.image_id:
            # Without samples, nothing shows that the source is the one that was indexed.
            is_same = bool(samples)
        elif self._moves(indexed):
            sizes = {listed.num_bytes, indexed.num_bytes} - {None}
            is_same = _part(listed) == _part(indexed) and len(sizes) <= 1
        else:
            is_same = listed.uri == indexed.uri
        if not is_same:
            first = "no image" if listed is None else listed.uri
            raise self._error(f"its first image is {first} instead of {self.reader.current_uri(indexed.uri)}")

    def _error(self, problem: str) -> ConfigError:
        return ConfigError(
            "source.path",
            self.config.source.path,
            f"does not contain the images that were indexed at {self.recorded.full_path}: {problem}.",
            "Copy all of them with their old names, set source.path to their location, or give a new run_dir.",
        )


def _part(ref: ImageRef) -> Locator:
    """The locator of an image without the URI of its file, which changes when the file moves."""
    return replace(Locator.parse(ref.uri), uri="")
