"""Check that the first entries of a list or a table name files that exist."""

from __future__ import annotations

from collections.abc import Sequence

from mpa_ray.config import SourceConfig
from mpa_ray.corpus.locator import Locator
from mpa_ray.corpus.places.places import Places
from mpa_ray.corpus.sources.uri_list import is_text_list
from mpa_ray.errors import ConfigError
from mpa_ray.records import ImageRef

NUM_CHECKED = 20
"""The number of entries to check."""
_MAX_SHOWN = 120
"""The number of characters of a path that the error shows."""


def check_named_files(config: SourceConfig, kind: str, images: Sequence[ImageRef], places: Places) -> None:
    """Check that one of the first entries of a list or a table names a file that exists.

    A single missing file is no error: its image becomes a row with a reason. But if all of the first files are missing,
    the source is probably not a list, or its paths are relative to another folder.

    Args:
        config: The source.
        kind: The kind of the source: a list or a table.
        images: The first images of the source, at least one.
        places: Opens files by their URIs.

    Raises:
        ConfigError: all files are missing.
    """
    if not all(is_missing(image, config, places) for image in images):
        return
    path = Locator.parse(images[0].uri).uri
    shown = f"{path[:_MAX_SHOWN]}..." if len(path) > _MAX_SHOWN else path
    others = f" (all of the first {len(images)} files are missing)" if len(images) > 1 else ""
    where = images[0].image_id
    remedy = (
        f"The column {config.image_column!r} needs paths or URIs of images. A path is relative to its file's folder."
    )
    if kind == "list" and is_text_list(config.path):
        where = f"line {where.rpartition('/')[2]}"
        remedy = "Give a list with the path or URI of an image on each line. A path is relative to the list's folder."
    raise ConfigError("source.path", config.path, f"{where} names {shown}, which does not exist{others}.", remedy)


def is_missing(image: ImageRef, config: SourceConfig, places: Places) -> bool:
    """Whether an image is in a file that does not exist. Local files, and files in the folder of the list or table, are
    looked up."""
    uri = Locator.parse(image.uri).uri
    is_local = "://" not in uri or uri.startswith("file://")
    if not is_local and not uri.startswith(f"{config.path.rpartition('/')[0]}/"):
        return False
    try:
        places.of(uri).size(uri)
    except FileNotFoundError:
        return True
    except PermissionError:
        return False
    except (OSError, ValueError):
        # Names of local files are limited in length and cannot contain the character NUL.
        return is_local
    return False
