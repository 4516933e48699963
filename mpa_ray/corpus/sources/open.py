"""Which kind of source a path is."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice

from mpa_ray.config import SourceConfig, resolve_path
from mpa_ray.corpus.places.places import Places
from mpa_ray.corpus.sources.images import ImageFiles, image_endings
from mpa_ray.corpus.sources.parquet import ENDINGS as PARQUET_ENDINGS
from mpa_ray.corpus.sources.parquet import ParquetFiles
from mpa_ray.corpus.sources.saved_dataset import STATE_FILE, SavedDataset
from mpa_ray.corpus.sources.source import Files, Source
from mpa_ray.corpus.sources.uri_list import ENDINGS as LIST_ENDINGS
from mpa_ray.corpus.sources.uri_list import UriList
from mpa_ray.corpus.sources.webdataset import ENDINGS as TAR_ENDINGS
from mpa_ray.corpus.sources.webdataset import WebDataset
from mpa_ray.errors import ConfigError

KINDS: dict[str, Callable[[SourceConfig, Places], Source]] = {
    "images": ImageFiles,
    "list": UriList,
    "parquet": ParquetFiles,
    "webdataset": WebDataset,
    "saved_dataset": SavedDataset,
}
_BY_ENDING = {
    **dict.fromkeys(LIST_ENDINGS, "list"),
    **dict.fromkeys(PARQUET_ENDINGS, "parquet"),
    **dict.fromkeys((*TAR_ENDINGS, ".tar.gz", ".tgz"), "webdataset"),
}
_NUM_LOOKED_AT = 1000


def open_source(config: SourceConfig, places: Places) -> Source:
    """The source that a configuration describes.

    Raises:
        ConfigError: it is of no kind that is read here.
    """
    if config.path.startswith(("http://", "https://")) and "http" not in config.allow:
        raise ConfigError(
            "source.path",
            config.path,
            "is fetched from the web, which is refused.",
            "Copy it, or add 'http' to source.allow.",
        )
    # Workers have other working directories.
    config = config.model_copy(update={"path": resolve_path(config.path)})
    return KINDS[kind_of(config, places)](config, places)


def kind_of(config: SourceConfig, places: Places) -> str:
    """`source.kind`, or what the path's ending tells, or else what lies there."""
    if config.kind != "auto":
        return config.kind
    for ending, kind in _BY_ENDING.items():
        if config.path.lower().endswith(ending):
            return kind
    folder = config.path.rstrip("/")
    if _is_there(places, config, f"{folder}/dataset_dict.json"):
        raise ConfigError("source.path", config.path, "is a saved DatasetDict.", "Give the folder of one split.")
    if _is_there(places, config, f"{folder}/{STATE_FILE}"):
        return "saved_dataset"
    looked_at = [e.path.lower() for e in islice(Files(places, config.path, ()).entries(), _NUM_LOOKED_AT)]
    endings = {"images": image_endings(config), "parquet": PARQUET_ENDINGS, "webdataset": TAR_ENDINGS}
    return next((kind for kind, e in endings.items() if e and any(path.endswith(e) for path in looked_at)), "images")


def _is_there(places: Places, config: SourceConfig, uri: str) -> bool:
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
