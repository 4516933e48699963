"""The arguments of the installed vLLM. They are read from its source code, because importing vLLM takes ten seconds."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mpa_ray.errors import ConfigError, did_you_mean

_CLASSES = ("EngineArgs", "AsyncEngineArgs")


def check_arguments(arguments: Mapping[str, Any], field: str) -> None:
    """Check the names of arguments for vLLM. If the source code of vLLM cannot be read, all names are accepted.

    Args:
        arguments: The value of the setting `engine_args`.
        field: The dotted name of this setting.

    Raises:
        ConfigError: the installed vLLM has no argument of this name.
    """
    known = known_arguments()
    for name, value in arguments.items():
        if known and name not in known:
            remedy = did_you_mean(name, sorted(known)) or "Remove it, or see the fields of vLLM's AsyncEngineArgs."
            raise ConfigError(f"{field}.{name}", value, "is not an argument of the installed vLLM.", remedy)


@cache
def known_arguments() -> frozenset[str]:
    """The fields of vLLM's `AsyncEngineArgs`; empty if vLLM is not installed or has a different layout."""
    spec = find_spec("vllm")
    if spec is None or spec.origin is None:
        return frozenset()
    try:
        tree = ast.parse((Path(spec.origin).parent / "engine/arg_utils.py").read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        return frozenset()
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    bases = {base.id if isinstance(base, ast.Name) else "?" for name in _CLASSES for base in _bases(classes.get(name))}
    if not classes.keys() >= set(_CLASSES) or bases - set(_CLASSES):
        # Some fields may be inherited from classes that this function does not read.
        return frozenset()
    fields = (line for name in _CLASSES for line in classes[name].body if isinstance(line, ast.AnnAssign))
    return frozenset(line.target.id for line in fields if isinstance(line.target, ast.Name))


def _bases(node: ast.ClassDef | None) -> list[ast.expr]:
    return node.bases if node is not None else []
