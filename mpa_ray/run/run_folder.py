"""Recognise run directories among other local folders."""

from __future__ import annotations

from pathlib import Path

from mpa_ray.config.regular_file import read_regular_file
from mpa_ray.run.run import RUN_FILE
from mpa_ray.textual import parse_json

_KEYS = ("config", "versions")
"""The keys that `run.json` has in every format."""


def is_run_folder(folder: str) -> bool:
    """Whether a local folder is a run directory, of any format. A folder that cannot be read is not."""
    try:
        stored = parse_json(read_regular_file(Path(folder) / RUN_FILE).decode())
    except (OSError, ValueError):
        return False
    return isinstance(stored, dict) and all(key in stored for key in _KEYS)
