"""The layers of the package, read from the code's own imports: who may import what."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import mpa_ray

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "mpa_ray"

LAYERS = (
    ("textual", "redaction"),
    ("errors", "observability"),
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
"""From the lowest to the highest. A package imports itself and packages of lower layers, and no other package of its
own layer."""


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name, apart from `mpa_ray.__main__`, which only calls the command."""
    files = (path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__main__.py")
    paths = {path.relative_to(ROOT).with_suffix(""): path for path in files}
    return {".".join(name.parts).removesuffix(".__init__"): path for name, path in paths.items()}


@cache
def imports(source: str, package: str) -> tuple[str, ...]:
    """The dotted names that a module imports, also inside functions and under TYPE_CHECKING.

    Args:
        source: The module's text.
        package: The package that holds the module; relative imports start there.
    """
    return tuple(_imports(ast.parse(source), package))


def _imports(tree: ast.Module, package: str) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{_origin(node, package)}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "mpa_ray":
            yield f"mpa_ray.{node.attr}"


def _origin(node: ast.ImportFrom, package: str) -> str:
    """The absolute name of the module from which a statement imports."""
    parents = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
    return ".".join([*parents, *([node.module] if node.module else [])])


def imported_modules(source: str, package: str, known: Collection[str]) -> set[str]:
    """The modules of the package among a module's imports. A public name of `mpa_ray` leads to its module."""
    names: set[str] = set()
    for name in imports(source, package):
        public = name.removeprefix("mpa_ray.")
        if name == "mpa_ray.*":
            names |= set(mpa_ray._MODULES.values())
        elif name in known:
            names.add(name)
        elif public in mpa_ray._MODULES:
            names.add(mpa_ray._MODULES[public])
        else:
            names.add(name.rpartition(".")[0])
    return {name for name in names if name in known and name != "mpa_ray"}


def package_of(module: str, path: Path) -> str:
    return module if path.name == "__init__.py" else module.rpartition(".")[0]


def import_graph(sources: Mapping[str, tuple[str, str]]) -> dict[str, set[str]]:
    """The imported modules of each module; `sources` holds each module's package and text."""
    return {name: imported_modules(text, package, sources) - {name} for name, (package, text) in sources.items()}


def package_sources() -> dict[str, tuple[str, str]]:
    """The package and the text of every module except `mpa_ray` itself, whose names are imported on first use."""
    return {name: (package_of(name, path), path.read_text()) for name, path in modules().items() if name != "mpa_ray"}


def imports_of_higher_layers(graph: Mapping[str, set[str]]) -> list[str]:
    """The imports that lead to a higher layer, or to another package of the same layer."""
    level = {name: number for number, layer in enumerate(LAYERS) for name in layer}
    pairs = [(name, other) for name, others in graph.items() for other in others]
    packages_of_pairs = [(name.split(".")[1], other.split(".")[1]) for name, other in pairs]
    return [
        f"{name} imports {other}"
        for (name, other), (package, imported) in zip(pairs, packages_of_pairs, strict=True)
        if imported != package and level[imported] >= level[package]
    ]


def import_cycle(graph: Mapping[str, set[str]]) -> list[str]:
    """The modules of an import cycle; empty if there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        cycle: list[str] = error.args[1]
        return cycle
    return []


def files_importing(module: str) -> set[str]:
    return {
        path.relative_to(PACKAGE).as_posix()
        for name, path in modules().items()
        if any(
            imported == module or imported.startswith(f"{module}.")
            for imported in imports(path.read_text(), package_of(name, path))
        )
    }


def packages() -> set[str]:
    return {name.split(".")[1] for name in modules() if name != "mpa_ray"}


def test_every_package_has_one_layer() -> None:
    assert sorted(name for layer in LAYERS for name in layer) == sorted(packages())


def test_a_package_imports_only_lower_layers() -> None:
    assert imports_of_higher_layers(import_graph(package_sources())) == []


def test_no_module_imports_itself_through_others() -> None:
    assert import_cycle(import_graph(package_sources())) == []


LOCAL = "mpa_ray.storage.local"


@pytest.mark.parametrize(
    ("statement", "imported"),
    [
        ("from .. import phases", "mpa_ray.phases"),
        ("from ..phases import level", "mpa_ray.phases.level"),
        ("from ..phases.level import level_student", "mpa_ray.phases.level"),
        ("from ..phases.level import *", "mpa_ray.phases.level"),
        ("from mpa_ray import phases", "mpa_ray.phases"),
        ("from mpa_ray import run_phase", "mpa_ray.api.phases"),
        ("from .. import run_phase", "mpa_ray.api.phases"),
        ("import mpa_ray\nmpa_ray.run_phase(config)", "mpa_ray.api.phases"),
        ("import mpa_ray.phases.level", "mpa_ray.phases.level"),
        ("def late():\n    from .. import phases", "mpa_ray.phases"),
        ("if TYPE_CHECKING:\n    from mpa_ray.phases.level import level_student", "mpa_ray.phases.level"),
    ],
)
def test_an_import_of_a_higher_layer_is_noticed(statement: str, imported: str) -> None:
    graph = {LOCAL: imported_modules(statement, "mpa_ray.storage", modules())}
    assert imports_of_higher_layers(graph) == [f"{LOCAL} imports {imported}"]


def test_all_public_names_lead_to_their_modules() -> None:
    imported = imported_modules("from mpa_ray import *", "mpa_ray.storage", modules())
    assert imported == set(mpa_ray._MODULES.values())


@pytest.mark.parametrize("statement", ["from .open import *", "from . import open", "from ..storage.open import X"])
def test_a_relative_import_cycle_is_noticed(statement: str) -> None:
    sources = {
        "mpa_ray.storage.open": ("mpa_ray.storage", "from mpa_ray.storage.local import LocalStorage"),
        LOCAL: ("mpa_ray.storage", statement),
    }
    assert set(import_cycle(import_graph(sources))) == {LOCAL, "mpa_ray.storage.open"}


def test_a_package_imports_relative_to_itself() -> None:
    sources = {"mpa_ray.config": ("mpa_ray.config", "from .run import RunConfig"), "mpa_ray.config.run": ("", "")}
    assert import_graph(sources)["mpa_ray.config"] == {"mpa_ray.config.run"}


def test_few_modules_are_loose_and_none_is_long() -> None:
    loose = [path.name for path in PACKAGE.glob("*.py") if path.name not in ("__init__.py", "__main__.py")]
    assert len(loose) <= 6, loose
    long = {str(path.relative_to(ROOT)): len(path.read_text().split("\n")) for path in PACKAGE.rglob("*.py")}
    assert not {path: lines for path, lines in long.items() if lines > 400}


def test_no_two_classes_have_the_same_name() -> None:
    trees = [ast.parse(path.read_text()) for path in PACKAGE.rglob("*.py")]
    names = Counter(node.name for tree in trees for node in tree.body if isinstance(node, ast.ClassDef))
    assert not [name for name, number in names.items() if number > 1]


def test_the_formatter_is_never_switched_off() -> None:
    folders = ("mpa_ray", "jobs", "benchmarks", "tests")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    mark = "fmt" + ": "
    assert not [path for path in files if f"# {mark}skip" in path.read_text() or f"# {mark}off" in path.read_text()]


def test_only_engine_vllm_knows_vllm() -> None:
    assert {file for file in files_importing("vllm") if not file.startswith("engine/vllm/")} == set()


def test_only_the_client_and_its_errors_know_boto3() -> None:
    files = {"storage/object_store.py", "storage/boto3_errors.py"}
    assert files_importing("boto3") == files_importing("botocore") == files


def test_only_pipeline_knows_ray_data() -> None:
    assert {file for file in files_importing("ray.data") if not file.startswith("pipeline/")} == set()


def test_only_leveling_knows_ray_train() -> None:
    assert {file for file in files_importing("ray.train") if not file.startswith("leveling/")} == set()


def test_only_pipeline_and_leveling_know_ray() -> None:
    assert {file for file in files_importing("ray") if not file.startswith(("pipeline/", "leveling/"))} == set()
    assert "pipeline/pass_spec.py" not in files_importing("ray")
