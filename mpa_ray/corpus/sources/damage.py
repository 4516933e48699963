"""Files of a source that are cut or damaged: an error that names the file, or left out if the user has chosen that."""

from __future__ import annotations

from collections.abc import Iterator

from mpa_ray.config import SourceConfig
from mpa_ray.corpus.sources.left_out import LeftOut
from mpa_ray.corpus.sources.source import Listed
from mpa_ray.errors import ConfigError


class DamagedFile(Exception):
    """A file with images is not of its kind, or is cut or damaged."""


def without_damaged(config: SourceConfig, path: str, listing: Iterator[Listed]) -> Iterator[Listed]:
    """Yield the listing of a file; leave out the whole file if it is damaged and `skip_damaged` is set.

    Args:
        config: The source.
        path: The file's path below the source's root, for the message.
        listing: Raises DamagedFile, with a message without a full stop, if the file is damaged.

    Raises:
        ConfigError: the file is damaged; names it.
    """
    try:
        # What is yielded cannot be taken back.
        yield from list(listing) if config.skip_damaged else listing
    except DamagedFile as error:
        if not config.skip_damaged:
            raise ConfigError(
                "source.path",
                config.path,
                f"{path} {error}.",
                "Repair the file or remove it from the source, or set source.skip_damaged to leave such files out.",
            ) from error
        yield LeftOut("damaged files (source.skip_damaged)")
