"""The layers of the package, read from the code's own imports: who may import what."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "mpa_ray"

LAYERS = (
    ("textual", "redaction"),
    ("errors", "observability"),
    ("remedies",),
    ("config", "records"),
    ("metrics",),
    ("matching", "tasks", "storage"),
    ("models", "imaging"),
    ("run", "engine"),
    ("corpus",),
    ("stages",),
    ("pipeline", "evaluation", "sizing"),
    ("leveling", "report"),
    ("phases",),
    ("campaign", "demo"),
    ("api",),
    ("cli",),
)
"""From the lowest to the highest; a package imports itself and packages of lower layers, and nothing beside it."""


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name, apart from `mpa_ray.__main__`, which only calls the command."""
    files = (path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__main__.py")
    paths = {path.relative_to(ROOT).with_suffix(""): path for path in files}
    return {".".join(name.parts).removesuffix(".__init__"): path for name, path in paths.items()}


def imports(path: Path) -> Iterator[str]:
    """The dotted names that a file imports, also inside functions and under TYPE_CHECKING."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imported_modules(path: Path, known: dict[str, Path]) -> set[str]:
    """The modules of the package among a file's imports."""
    names = {name if name in known else name.rpartition(".")[0] for name in imports(path)}
    return {name for name in names if name in known and name != "mpa_ray"}


def files_importing(module: str) -> set[str]:
    return {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if any(name == module or name.startswith(f"{module}.") for name in imports(path))
    }


def packages() -> set[str]:
    return {name.split(".")[1] for name in modules() if name != "mpa_ray"}


def test_every_package_has_one_layer() -> None:
    assert sorted(name for layer in LAYERS for name in layer) == sorted(packages())


@pytest.mark.parametrize("package", sorted(packages()))
def test_a_package_imports_lower_layers_alone(package: str) -> None:
    known = modules()
    level = {name: number for number, layer in enumerate(LAYERS) for name in layer}
    wrong = [
        f"{path.relative_to(ROOT)} imports {other}"
        for name, path in known.items()
        if name.split(".")[1:2] == [package]
        for other in imported_modules(path, known)
        if other.split(".")[1] != package and level[other.split(".")[1]] >= level[package]
    ]
    assert not wrong


def test_no_module_imports_itself_through_others() -> None:
    known = modules()
    graph = {name: imported_modules(path, known) - {name} for name, path in known.items() if name != "mpa_ray"}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"import circle: {' -> '.join(error.args[1])}")


def test_few_modules_are_loose_and_none_is_long() -> None:
    loose = [path.name for path in PACKAGE.glob("*.py") if path.name not in ("__init__.py", "__main__.py")]
    assert len(loose) <= 6, loose
    long = {str(path.relative_to(ROOT)): len(path.read_text().split("\n")) for path in PACKAGE.rglob("*.py")}
    assert not {path: lines for path, lines in long.items() if lines > 400}


def test_the_formatter_is_never_switched_off() -> None:
    folders = ("mpa_ray", "jobs", "benchmarks", "tests")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    mark = "fmt" + ": "
    assert not [path for path in files if f"# {mark}skip" in path.read_text() or f"# {mark}off" in path.read_text()]


def test_only_engine_vllm_knows_vllm() -> None:
    assert {file for file in files_importing("vllm") if not file.startswith("engine/vllm/")} == set()


def test_only_one_file_knows_boto3() -> None:
    assert files_importing("boto3") == files_importing("botocore") == {"storage/object_store.py"}


def test_only_pipeline_knows_ray_data() -> None:
    assert {file for file in files_importing("ray.data") if not file.startswith("pipeline/")} == set()


def test_only_leveling_knows_ray_train() -> None:
    assert {file for file in files_importing("ray.train") if not file.startswith("leveling/")} == set()


def test_only_pipeline_and_leveling_know_ray() -> None:
    assert {file for file in files_importing("ray") if not file.startswith(("pipeline/", "leveling/"))} == set()
    assert "pipeline/pass_spec.py" not in files_importing("ray")
