"""Handles damaged files of a source: either an error names the file or, if `skip_damaged` is set, the file is left
out."""

from __future__ import annotations

from collections.abc import Iterator

from mpa_ray.config import SourceConfig
from mpa_ray.corpus.sources.left_out import LeftOut
from mpa_ray.corpus.sources.source import Listed
from mpa_ray.errors import ConfigError
from mpa_ray.textual import readable


class DamagedSource(Exception):
    """A file with images is damaged, cut off, or not of the kind that its name indicates."""


def without_damaged(config: SourceConfig, path: str, listing: Iterator[Listed]) -> Iterator[Listed]:
    """Yield the listing of a file. If the file is damaged and `skip_damaged` is set, leave out the whole file.

    Args:
        config: The source.
        path: The file's path below the source's root, for the message.
        listing: The items of the file. If the file cannot be read, the iterator raises an error from `unreadable`.

    Raises:
        ConfigError: the file is damaged and `skip_damaged` is not set, or the file cannot be read.
    """
    try:
        # With `skip_damaged`, read the whole listing first, because yielded items cannot be taken back.
        yield from list(listing) if config.skip_damaged else listing
    except DamagedSource as error:
        if not config.skip_damaged:
            raise ConfigError(
                "source.path",
                config.path,
                f"{path} {error}.",
                "Repair the file or remove it from the source, or set source.skip_damaged to leave such files out.",
            ) from error
        yield LeftOut("damaged files (source.skip_damaged)")


def unreadable(config: SourceConfig, path: str, uri: str, kind: str, error: Exception) -> DamagedSource | ConfigError:
    """The error to raise if a file of images cannot be read.

    Args:
        config: The source.
        path: The file's path below the source's root, for the message.
        uri: The file's URI.
        kind: What the file should be, such as `a tar`.
        error: The reason. pyarrow raises OSError for a damaged file, too. An OSError from the storage differs: it has
            an error number, is of a derived class, or its message begins with the URI.
    """
    of_storage = isinstance(error, OSError) and (
        type(error) is not OSError or error.errno is not None or str(error).startswith(uri)
    )
    message = readable(" ".join(str(getattr(error, "strerror", None) or error).split()))
    if not of_storage:
        return DamagedSource(f"cannot be read as {kind} ({message})")
    return ConfigError(
        "source.path",
        config.path,
        f"{path} cannot be read ({message}).",
        "Check the file, your permissions and the connection.",
    )
