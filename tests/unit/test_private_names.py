"""Tests do not replace private names of the package: what a test has to change is a parameter of the code."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
ALLOWED = {
    # botocore has no hook for the failure of any request of any client.
    "servers/test_object_store_faults.py: botocore.client.BaseClient._make_api_call",
    # No server of the tests divides a list of uploads into pages.
    "unit/test_damage.py: _make_api_call",
    # Ray offers no other way to pretend that a machine has GPUs.
    "unit/test_machine.py: ray._private.accelerators.get_accelerator_manager_for_resource",
}
"""Private names of other packages that tests replace, with the reason."""
_PATCHES = {"setattr", "delattr", "patch", "object", "setitem", "delitem"}


def is_private(name: str) -> bool:
    return any(part.startswith("_") and not part.endswith("__") for part in name.split("."))


def replaced_names(tree: ast.AST) -> Iterator[str]:
    """Yield the private names that the code sets, deletes or patches on other objects than `self`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            function = node.func
            name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
            if name in _PATCHES:
                yield from filter(is_private, _named_by(node.args[:2]))
        elif isinstance(node, ast.Attribute) and not isinstance(node.ctx, ast.Load):
            yield from _unless_own(node)
        elif isinstance(node, ast.Subscript) and not isinstance(node.ctx, ast.Load):
            yield from _unless_own(node.value)


def _named_by(arguments: list[ast.expr]) -> Iterator[str]:
    """The attribute that the first arguments of a patch name: "package.name", or an object and "name"."""
    texts = [argument.value for argument in arguments if isinstance(argument, ast.Constant)]
    yield from (text for text in texts if isinstance(text, str))
    if arguments and isinstance(arguments[0], ast.Attribute):
        yield ast.unparse(arguments[0])


def _unless_own(node: ast.expr) -> Iterator[str]:
    if isinstance(node, ast.Attribute) and is_private(node.attr) and ast.unparse(node.value) not in ("self", "cls"):
        yield ast.unparse(node)


def test_no_test_replaces_a_private_name() -> None:
    replaced = {
        f"{path.relative_to(TESTS).as_posix()}: {name}"
        for path in TESTS.rglob("*.py")
        for name in replaced_names(ast.parse(path.read_text(encoding="utf-8")))
    }
    assert replaced == ALLOWED


@pytest.mark.parametrize(
    "code",
    [
        'monkeypatch.setattr(module, "_name", 1)',
        'monkeypatch.setattr("package.module._name", 1)',
        'monkeypatch.setattr("package._module.name", 1)',
        'monkeypatch.setattr(module._name, "public", 1)',
        'monkeypatch.setitem(module._names, "key", 1)',
        'monkeypatch.delattr(module, "_name")',
        'setattr(thing, "_name", 1)',
        'mock.patch("package.module._name")',
        'mock.patch.object(module, "_name")',
        "module._name = 1",
        "module._name += 1",
        "module._names['key'] = 1",
        "thing.part._name = 1",
        "del module._name",
    ],
)
def test_every_form_of_replacement_is_recognised(code: str) -> None:
    assert list(replaced_names(ast.parse(code)))


@pytest.mark.parametrize(
    "code",
    [
        'monkeypatch.setattr(module, "name", lambda _: 1)',
        'monkeypatch.setenv("_NAME", "1")',
        "self._name = 1",
        "self._names['key'] = 1",
        "error.__cause__ = cause",
        "print(module._name)",
    ],
)
def test_other_uses_of_names_are_allowed(code: str) -> None:
    assert not list(replaced_names(ast.parse(code)))
