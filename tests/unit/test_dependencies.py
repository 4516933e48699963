"""Every package that mpa_ray imports is declared in pyproject.toml."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOR_AN_EXTRA = {"vllm", "pi_heif"}
"""Imported where an extra (`cpu`, `gpu` or `heic`) is installed."""


def imported_packages() -> Iterator[str]:
    for folder in ("mpa_ray", "jobs"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    yield from (alias.name.partition(".")[0] for alias in node.names)
                elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    yield node.module.partition(".")[0]


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_what_is_imported_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {normalised(re.split(r"[\[<>=~! ]", line)[0]) for line in project["dependencies"]}
    distributions = packages_distributions()
    third_party = set(imported_packages()) - set(sys.stdlib_module_names) - {"mpa_ray"} - FOR_AN_EXTRA
    undeclared = {
        package
        for package in third_party
        if not declared & {normalised(name) for name in distributions.get(package, [package])}
    }
    assert not undeclared
