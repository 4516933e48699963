"""The folder of this user's cache on this machine."""

from __future__ import annotations

import os
from pathlib import Path

CACHE_VARIABLE = "MPA_RAY_CACHE"
"""The environment variable with the folder of downloaded checkpoints and of digests; ~/.cache/mpa_ray if not set."""


def cache_folder() -> Path:
    """The folder, which need not exist yet."""
    return Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache/mpa_ray")
