"""What every branch of the configuration tree is, and paths inside the package."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

import mpa_ray

BUNDLED = "bundled:"
"""Prefix of a path inside the package, as in `bundled:demo/models/teacher`."""


class Settings(BaseModel):
    """A branch of the tree: unknown keys are refused, values cannot change, and each field explains itself."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=(), allow_inf_nan=False
    )


def resolve_path(path: str) -> str:
    """A `bundled:` path as a real one, and one that exists here as absolute: workers have other working directories."""
    if path.startswith(BUNDLED):
        return str(Path(mpa_ray.__file__).parent / path.removeprefix(BUNDLED))
    return str(Path(path).absolute()) if Path(path).exists() else path
