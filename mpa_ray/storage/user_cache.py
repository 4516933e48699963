"""The folder of this user's cache on this machine."""

from __future__ import annotations

import os
from pathlib import Path

from mpa_ray.errors import ConfigError

CACHE_VARIABLE = "MPA_RAY_CACHE"
"""The environment variable with the folder for downloaded checkpoints and for digests. The default is
~/.cache/mpa_ray."""


def cache_folder() -> Path:
    """The cache folder, which may not exist yet.

    Raises:
        ConfigError: the variable is not set, and this user has no home folder.
    """
    if folder := os.environ.get(CACHE_VARIABLE):
        return Path(folder)
    home = home_folder()
    if home is None:
        raise ConfigError(
            CACHE_VARIABLE,
            None,
            "is not set, and this user has no home folder.",
            "Set it to a folder for downloaded checkpoints.",
        )
    return home / ".cache/mpa_ray"


def home_folder() -> Path | None:
    """This user's home folder; None if there is none, as in a container whose user has an id but no name."""
    home = os.path.expanduser("~")
    return Path(home) if home != "~" else None
