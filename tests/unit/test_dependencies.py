"""Every package that mpa_ray imports is declared in pyproject.toml."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCAL = {"mpa_ray", "tests", "benchmarks", "docs"}
FOR_AN_EXTRA = {"vllm", "pi_heif"}
"""Imported where an extra (`cpu`, `gpu` or `heic`) is installed."""


def imported_packages(*folders: str) -> Iterator[str]:
    for folder in folders:
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    yield from (alias.name.partition(".")[0] for alias in node.names)
                elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    yield node.module.partition(".")[0]


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def undeclared(packages: Iterable[str], requirements: Iterable[str]) -> set[str]:
    """The packages that no requirement installs."""
    declared = {normalised(re.split(r"[\[<>=~! ]", line)[0]) for line in requirements}
    distributions = packages_distributions()
    third_party = set(packages) - set(sys.stdlib_module_names) - LOCAL - FOR_AN_EXTRA
    return {
        package
        for package in third_party
        if not declared & {normalised(name) for name in distributions.get(package, [package])}
    }


def test_what_is_imported_is_declared() -> None:
    assert not undeclared(imported_packages("mpa_ray", "jobs"), PROJECT["dependencies"])


def test_what_tests_import_is_declared() -> None:
    requirements = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]
    assert not undeclared(imported_packages("tests"), requirements)
