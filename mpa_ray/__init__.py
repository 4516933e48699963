"""Align small vision-language models with a large one, without labels, on a Ray cluster.

    from mpa_ray import align, load_config, open_run

    config = load_config("my.yaml")
    align(config)
    table = open_run(config.run_dir).annotations()

Importing this package is fast: each public name is imported when it is first used.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mpa_ray.api.phases import Phase as Phase
    from mpa_ray.api.phases import align as align
    from mpa_ray.api.phases import run_phase as run_phase
    from mpa_ray.api.run_view import RunView as RunView
    from mpa_ray.api.run_view import open_run as open_run
    from mpa_ray.config import EvaluationRunConfig as EvaluationRunConfig
    from mpa_ray.config import ObjectStoreConfig as ObjectStoreConfig
    from mpa_ray.config import RunConfig as RunConfig
    from mpa_ray.config import load_config as load_config
    from mpa_ray.config import load_evaluation as load_evaluation
    from mpa_ray.errors import ConfigError as ConfigError
    from mpa_ray.errors import RunError as RunError
    from mpa_ray.errors import Unfinished as Unfinished

__version__ = "0.2.0"

_MODULES = {
    "ConfigError": "mpa_ray.errors",
    "EvaluationRunConfig": "mpa_ray.config",
    "ObjectStoreConfig": "mpa_ray.config",
    "Phase": "mpa_ray.api.phases",
    "RunConfig": "mpa_ray.config",
    "RunError": "mpa_ray.errors",
    "RunView": "mpa_ray.api.run_view",
    "Unfinished": "mpa_ray.errors",
    "align": "mpa_ray.api.phases",
    "load_config": "mpa_ray.config",
    "load_evaluation": "mpa_ray.config",
    "open_run": "mpa_ray.api.run_view",
    "run_phase": "mpa_ray.api.phases",
}
"""The module that defines each public name."""

__all__ = [
    "ConfigError",
    "EvaluationRunConfig",
    "ObjectStoreConfig",
    "Phase",
    "RunConfig",
    "RunError",
    "RunView",
    "Unfinished",
    "__version__",
    "align",
    "load_config",
    "load_evaluation",
    "open_run",
    "run_phase",
]

_OLDEST_PYTHON, _FIRST_UNSUPPORTED_PYTHON = (3, 11), (3, 14)


def _unsupported_python(version: tuple[int, ...] = sys.version_info[:2]) -> str | None:
    """Return a message of one line if this version of Python is not supported, otherwise None."""
    if _OLDEST_PYTHON <= version < _FIRST_UNSUPPORTED_PYTHON:
        return None
    running = ".".join(map(str, version))
    return f"mpa_ray needs Python 3.11, 3.12 or 3.13, and this is Python {running} ({sys.executable})."


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    problem = _unsupported_python()
    if problem is not None:
        raise ImportError(problem)
    value = getattr(import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])
