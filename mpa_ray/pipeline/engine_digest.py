"""Identifies an engine by everything that may decide whether it survives an image."""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import version
from typing import Any

from mpa_ray import __version__
from mpa_ray.models.checkpoints import model_identity
from mpa_ray.pipeline.pass_spec import Pass
from mpa_ray.redaction import without_secret_values
from mpa_ray.run.versions import engine_versions

_DECODERS = ("pillow", "numpy")
"""Libraries that may crash on a damaged image."""


def engine_digest(work: Pass[Any]) -> str:
    """A digest of an engine's models and settings, and of the versions of its libraries on the driver.

    Unlike a fingerprint, it includes settings that do not change replies, such as those that limit memory.
    """
    store = work.reader.object_store
    # A new access token does not change which images an engine survives.
    settings = without_secret_values(work.model.model_dump(mode="json", exclude={"model"}))
    parts = {
        "model": model_identity(work.model.model, store),
        "adapters": {name: model_identity(adapter.model, store) for name, adapter in work.adapters.items()},
        "settings": settings,
        "request_timeout_s": work.limits.request_timeout_s,
        "versions": {**engine_versions(), **{name: version(name) for name in _DECODERS}, "mpa_ray": __version__},
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
