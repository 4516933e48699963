"""Recognises the kind of a source, and opens it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path

from mpa_ray.config import SourceConfig, resolve_path
from mpa_ray.corpus.places.places import Places
from mpa_ray.corpus.sources.globs import split_glob
from mpa_ray.corpus.sources.images import ImageFiles, image_endings
from mpa_ray.corpus.sources.left_out import NameFilter
from mpa_ray.corpus.sources.parquet import ENDINGS as PARQUET_ENDINGS
from mpa_ray.corpus.sources.parquet import ParquetFiles
from mpa_ray.corpus.sources.saved_dataset import STATE_FILE, SavedDataset
from mpa_ray.corpus.sources.source import Files, Source
from mpa_ray.corpus.sources.uri_list import ENDINGS as LIST_ENDINGS
from mpa_ray.corpus.sources.uri_list import UriList
from mpa_ray.corpus.sources.webdataset import ENDINGS as TAR_ENDINGS
from mpa_ray.corpus.sources.webdataset import WebDataset
from mpa_ray.errors import ConfigError, did_you_mean
from mpa_ray.imaging.formats import HEIC_ENDINGS

KINDS: dict[str, Callable[[SourceConfig, Places], Source]] = {
    "images": ImageFiles,
    "list": UriList,
    "parquet": ParquetFiles,
    "webdataset": WebDataset,
    "saved_dataset": SavedDataset,
}
KINDS_OF_TABLES = ("list", "parquet", "saved_dataset")
_BY_ENDING = {
    **dict.fromkeys(LIST_ENDINGS, "list"),
    **dict.fromkeys(PARQUET_ENDINGS, "parquet"),
    **dict.fromkeys((*TAR_ENDINGS, ".tar.gz", ".tgz"), "webdataset"),
}
_NUM_ENTRIES_EXAMINED = 1000
_APPLIES_TO = {
    "extensions": ("images", "webdataset"),
    "exclude": ("images", "parquet", "webdataset"),
    "include_hidden": ("images", "parquet", "webdataset"),
    "image_column": KINDS_OF_TABLES,
    "id_column": KINDS_OF_TABLES,
    "skip_damaged": ("parquet", "webdataset", "saved_dataset"),
    "metadata": ("list", "parquet", "webdataset", "saved_dataset"),
}
"""The kinds of source that use a setting. All kinds use the settings that are not listed here."""


def open_source(config: SourceConfig, places: Places) -> Source:
    """Open the source that a configuration describes.

    Raises:
        ConfigError: the source is on the web and `source.allow` does not permit that, its kind is not known, or a
            setting does not apply to its kind.
    """
    if config.path.startswith(("http://", "https://")) and "http" not in config.allow:
        raise ConfigError(
            "source.path",
            config.path,
            "would be fetched from the web, which is not allowed.",
            "Copy it, or add 'http' to source.allow.",
        )
    places = replace(places, follow_redirects="redirects" in config.allow)
    # Workers have different working directories.
    config = config.model_copy(update={"path": resolve_path(config.path)})
    kind = kind_of(config, places)
    if kind not in KINDS:
        remedy = f"{did_you_mean(kind, KINDS)} Choose one of auto, {', '.join(KINDS)}.".lstrip()
        raise ConfigError("source.kind", kind, "is not a kind of source.", remedy)
    _check_settings(config, kind)
    return KINDS[kind](config, places)


def _check_settings(config: SourceConfig, kind: str) -> None:
    """Raise ConfigError if a setting has no effect on this kind of source."""
    defaults = SourceConfig(path=config.path)
    for setting, kinds in _APPLIES_TO.items():
        value = getattr(config, setting)
        if kind not in kinds and value != getattr(defaults, setting):
            raise ConfigError(
                f"source.{setting}",
                value,
                f"has no effect on a source of kind {kind}; it applies to {', '.join(kinds)}.",
                "Leave it out, or set source.kind.",
            )


def kind_of(config: SourceConfig, places: Places) -> str:
    """Return `source.kind`. For `auto`, recognise the kind by the path's ending or by the files in the folder."""
    if config.kind != "auto":
        return config.kind
    for ending, kind in _BY_ENDING.items():
        if config.path.lower().endswith(ending):
            return kind
    if _is_image_file(config):
        return "images"
    folder = config.path.rstrip("/")
    if _exists(places, config, f"{folder}/dataset_dict.json"):
        raise ConfigError("source.path", config.path, "is a saved DatasetDict.", "Give the folder of one split.")
    if _exists(places, config, f"{folder}/{STATE_FILE}"):
        return "saved_dataset"
    files = Files(places, config.path, (), names=NameFilter.of(config))
    paths = [entry.path.lower() for entry in islice(files.entries(), _NUM_ENTRIES_EXAMINED)]
    if _holds_tars_with_tables(paths):
        return "webdataset"
    endings = {"images": image_endings(config), "parquet": PARQUET_ENDINGS, "webdataset": TAR_ENDINGS}
    kinds = (kind for kind, names in endings.items() if names and any(path.endswith(names) for path in paths))
    return next(kinds, "images")


def is_single_file(config: SourceConfig, path: str) -> bool:
    """Whether a path without wildcards is the path of a file rather than a folder or a prefix. The path's ending
    decides; nothing is listed."""
    endings = {
        "images": tuple(f".{ending.lower().lstrip('.')}" for ending in config.extensions) + HEIC_ENDINGS,
        "list": LIST_ENDINGS,
        "parquet": PARQUET_ENDINGS,
        "webdataset": TAR_ENDINGS,
    }
    if config.kind == "list":
        return True
    kinds = endings if config.kind == "auto" else (config.kind,)
    of_files = tuple(ending for kind in kinds for ending in endings.get(kind, ()))
    return path.lower().endswith(of_files) and not Path(path).is_dir()


def _is_image_file(config: SourceConfig) -> bool:
    endings = image_endings(config)
    is_glob = split_glob(config.path)[1] is not None
    return bool(endings) and config.path.lower().endswith(endings) and not is_glob and not Path(config.path).is_dir()


def _holds_tars_with_tables(paths: list[str]) -> bool:
    """Whether there is a tar with a Parquet file of the same stem beside it. img2dataset writes such Parquet files;
    they hold no images."""
    stems = {ending: {p.removesuffix(ending) for p in paths if p.endswith(ending)} for ending in (".tar", ".parquet")}
    return bool(stems[".tar"] & stems[".parquet"])


def _exists(places: Places, config: SourceConfig, uri: str) -> bool:
    try:
        places.of(uri).size(uri)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise ConfigError(
            "source.path",
            config.path,
            f"cannot be read ({error.strerror or error}).",
            "Check the path, object_store and your credentials.",
        ) from error
    return True
