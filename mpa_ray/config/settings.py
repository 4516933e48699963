"""The base class of all settings, and paths inside the package."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

import mpa_ray

BUNDLED = "bundled:"
"""The prefix of a path inside the package, such as `bundled:demo/models/teacher`."""


class Settings(BaseModel):
    """A branch of the configuration tree.

    Unknown keys are refused and values cannot change. The docstring of each field is its help text.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=(), allow_inf_nan=False
    )


def resolve_path(path: str) -> str:
    """Resolve a `bundled:` path, and make an existing path absolute, since workers have other working directories."""
    if path.startswith(BUNDLED):
        return str(Path(mpa_ray.__file__).parent / path.removeprefix(BUNDLED))
    return str(Path(path).absolute()) if Path(path).exists() else path
