"""The folder or prefix below which a source's images lie, and how URIs change when the images move elsewhere."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from posixpath import normpath
from urllib.parse import unquote_to_bytes

from mpa_ray.config import SourceConfig, resolve_path
from mpa_ray.corpus.places.local import storable_uri
from mpa_ray.corpus.sources.globs import split_glob
from mpa_ray.corpus.sources.open import is_single_file
from mpa_ray.run.run import CORPUS_MANIFEST, REPORT_PAGE, RUN_FILE, SOURCE_FILE, Run
from mpa_ray.run.sealed_json import sealed

_FILE_SCHEME = "file://"

_FILES_OF_RUNS = (RUN_FILE, CORPUS_MANIFEST, "corpus/data/000000-0.parquet", REPORT_PAGE, "logs/annotate/1.log")
"""Examples of the files of a run. A glob that matches none of them lists no file of a run."""


@dataclass(frozen=True)
class SourceRoot:
    """A source's path, divided into a root, which changes when the images move, and the names below the root."""

    path: str
    """`source.path` as the user wrote it."""
    root: str
    """The absolute path or URI of the folder or prefix, without a slash at its end; empty for synthetic images."""
    names: str
    """The rest of the path: a glob or the name of a file; empty if the path is a folder or a prefix."""

    @classmethod
    def of(cls, config: SourceConfig) -> SourceRoot:
        """Divide the path of a configured source. Only local files are accessed."""
        path = resolve_path(config.path)
        if path.startswith("synthetic://"):
            return cls(config.path, "", path)
        root, pattern = split_glob(path)
        if pattern is not None:
            return cls(config.path, _absolute(root), path if root == "." else path[len(root) :].lstrip("/"))
        if not is_single_file(config, path):
            return cls(config.path, _absolute(path), "")
        folder, slash, name = path.rpartition("/")
        return cls(config.path, _absolute(folder or slash or "."), name)

    @classmethod
    def recorded(cls, run: Run) -> SourceRoot | None:
        """Return where the run's corpus was indexed; None if the run has no `SOURCE_FILE`."""
        try:
            return run.read_as(SOURCE_FILE, cls)
        except FileNotFoundError:
            return None

    def record(self, run: Run) -> None:
        """Store this in the run. Call it before the first shard of the corpus is committed."""
        run.storage.write(SOURCE_FILE, json.dumps(sealed(asdict(self))).encode())

    def record_if_missing(self, run: Run) -> None:
        """Store this in a run that is indexed but has no `SOURCE_FILE`, if the first image lies below the root.

        Call it only if the source is configured as it was when the corpus was indexed.
        """
        if self.root and SourceRoot.recorded(run) is None:
            first = run.corpus.read(run.manifest().shards[0])[0]
            if MovedRoot(self.root, "").moves(first.uri):
                self.record(run)

    @property
    def full_path(self) -> str:
        """The absolute path or URI."""
        return f"{self.root.rstrip('/')}/{self.names}" if self.names and self.root else self.root or self.names

    def is_same_place(self, other: SourceRoot) -> bool:
        """Whether the two paths name the same files. For example, `photos` and `photos/` name the same files."""
        return (self.root, self.names) == (other.root, other.names)

    def lists(self, run_dir: str) -> bool:
        """Whether a listing of the source would include files of a run in this directory.

        Args:
            run_dir: The run directory, as a path or an s3:// URI. Symbolic links in paths are resolved.
        """
        below = _path_below(run_dir, self.root) if self.root else None
        if below is None or not self.names:
            return below is not None
        _, pattern = split_glob(self.full_path)
        return pattern is not None and any(pattern.fullmatch(f"{below}{file}") for file in _FILES_OF_RUNS)


@dataclass(frozen=True)
class MovedRoot:
    """Maps the URIs of a corpus to the place to which its images have moved."""

    old: str
    """The root at which the corpus was indexed; see `SourceRoot.root`."""
    new: str
    """The root at which the images are now."""

    def uri(self, uri: str) -> str:
        """Return where a file is now. A file that is not below the old root has not moved.

        Args:
            uri: The file's URI, without the part that addresses an image inside the file.
        """
        below = self._below(uri)
        if below is None:
            return uri
        if "://" in self.new and "://" not in self.old:
            # In a path, `//` and `/./` mean the same as `/`; in the key of an object, they do not.
            below = normpath(below)
        return storable_uri(f"{self.new.rstrip('/')}/{below}")

    def moves(self, uri: str) -> bool:
        """Whether the file with this URI has moved."""
        return self._below(uri) is not None

    def _below(self, uri: str) -> str | None:
        """The path of a file below the old root; None if the file is not below it."""
        is_local = "://" not in self.old
        if is_local and uri.startswith(_FILE_SCHEME):
            uri = os.fsdecode(unquote_to_bytes(uri.removeprefix(_FILE_SCHEME)))
        prefix = self.old.rstrip("/") + "/"
        below = uri.removeprefix(prefix)
        # A path with `..` may lead out of the root. A key with `..` may do so when it becomes a path.
        return below if uri.startswith(prefix) and below.strip("/") and ".." not in below.split("/") else None


def _path_below(folder: str, root: str) -> str | None:
    """The path of a folder below a root, with a slash at its end, or "" for the root itself; None if it is not below
    the root."""
    if "://" in folder or "://" in root:
        path, prefix = folder.rstrip("/") + "/", root.rstrip("/") + "/"
        return path.removeprefix(prefix) if path.startswith(prefix) else None
    real_root = os.path.realpath(root)
    # The folder may lie below the root under its own name, or under the name that its symbolic links lead to. In a name
    # with `..`, the folders before the `..` are not parents of the folder.
    names = [Path(folder).absolute(), Path(os.path.realpath(folder))]
    for name in names:
        for parent in (name, *name.parents) if ".." not in name.parts else ():
            if os.path.realpath(parent) == real_root:
                below = name.relative_to(parent).as_posix()
                return "" if below == "." else f"{below}/"
    return None


def _absolute(root: str) -> str:
    return root.rstrip("/") if "://" in root else str(Path(root).absolute())
