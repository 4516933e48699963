"""Find the files that a benchmark's path names."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from mpa_ray.config import resolve_path
from mpa_ray.corpus.places.place import Entry
from mpa_ray.corpus.places.places import Places
from mpa_ray.corpus.sources.globs import split_glob
from mpa_ray.corpus.sources.source import Files
from mpa_ray.errors import ConfigError
from mpa_ray.evaluation.benchmarks.file import JSON, PARQUET, File, canonical_split

JSON_OR_PARQUET = (*JSON, *PARQUET)

_NUM_LISTED = 1000
"""The number of files that are listed to see whether a folder holds Parquet files."""


def find_files(
    places: Places,
    path: str,
    split: str | None = None,
    field: str = "benchmark.path",
    endings: tuple[str, ...] = JSON_OR_PARQUET,
) -> list[File]:
    """Return the file at a path, or the files of one split in a folder or glob.

    From a folder or glob, all Parquet files are taken. If there are none, the files with other endings are taken; in
    the case of a folder, these must be directly in it.

    Args:
        places: Opens files by their URIs.
        path: A file, a folder or a glob.
        split: The split to take; None requires that all files belong to the same split.
        field: The setting that holds the path, for error messages.
        endings: The file name endings to look for, in lower case with the dot.

    Raises:
        ConfigError: there are no files, or they belong to several splits.
    """
    path = resolve_path(path)
    if _is_file(path, endings):
        return [File(places, path, path.rpartition("/")[2], field)]
    listed = [File(places, e.uri, e.path, field) for e in _below(places, path, field, endings)]
    files = [file for file in listed if file.name.lower().endswith(PARQUET)]
    if not files:
        files = [file for file in listed if "/" not in file.name or split_glob(path)[1]]
    if not files:
        problem = f"holds no files that end in {', '.join(endings)}."
        raise ConfigError(field, path, problem, "Give the file with the questions.")
    return _of_split(files, split, path)


def holds_parquet(places: Places, path: str, field: str) -> bool:
    """Whether a path names Parquet files rather than a folder of images."""
    path = resolve_path(path)
    if _is_file(path, JSON_OR_PARQUET):
        return path.lower().endswith(PARQUET)
    entries = islice(_below(places, path, field, ()), _NUM_LISTED)
    return any(entry.path.lower().endswith(PARQUET) for entry in entries)


def _is_file(path: str, endings: tuple[str, ...]) -> bool:
    if split_glob(path)[1] is not None:
        return False
    return Path(path).is_file() or (path.lower().endswith(endings) and not Path(path).is_dir())


def _below(places: Places, path: str, field: str, endings: tuple[str, ...]) -> Iterator[Entry]:
    root, _ = split_glob(path)
    if "://" not in path and not Path(root).is_dir():
        raise ConfigError(field, path, "does not exist.", "Check the path.")
    try:
        yield from Files(places, path, endings).entries()
    except ConfigError as error:
        raise ConfigError(field, path, "cannot be listed.", f"The cause: {error}") from error


def _of_split(files: list[File], split: str | None, path: str) -> list[File]:
    named = sorted({file.split for file in files} - {""})
    if split is not None and named:
        chosen = [file for file in files if file.split == canonical_split(split)]
        if not chosen:
            raise ConfigError(
                "benchmark.split",
                split,
                f"is not a split of {path}, which has {', '.join(named)}.",
                "Choose one of these.",
            )
        return chosen
    if len(named) > 1:
        raise ConfigError(
            "benchmark.split",
            split,
            f"does not say which split of {path} to use: it has {', '.join(named)}.",
            "Choose one of these.",
        )
    return files
