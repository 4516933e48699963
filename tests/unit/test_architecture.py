"""The walls of the house: who may import what. Read from the code's own imports."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "mpa_ray"


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def files_importing(module: str) -> set[str]:
    return {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if any(name == module or name.startswith(f"{module}.") for name in imports(path))
    }


def test_only_one_file_knows_vllm() -> None:
    assert files_importing("vllm") == {"engine/vllm/engine.py"}


def test_only_one_file_knows_boto3() -> None:
    assert files_importing("boto3") == files_importing("botocore") == {"storage/object_store.py"}


def test_only_flow_knows_ray_data() -> None:
    assert files_importing("ray.data") == {"pipeline/graph.py"}


def test_only_leveling_flow_and_telemetry_know_ray() -> None:
    outside = {f for f in files_importing("ray") if not f.startswith("leveling/")}
    assert outside == {"pipeline/graph.py", "pipeline/telemetry.py"}
    assert files_importing("ray.util.metrics") == {"pipeline/telemetry.py"}


def test_only_leveling_knows_ray_train() -> None:
    assert {f for f in files_importing("ray.train") if not f.startswith("leveling/")} == set()


@pytest.mark.parametrize(
    ("layer", "not_from"),
    [
        ("records.py", ["config", "tasks", "stages", "store", "flow", "engine", "corpus"]),
        ("config.py", ["records", "tasks", "stages", "store", "flow", "engine", "corpus"]),
        ("matching.py", ["stages", "store", "flow", "engine"]),
        ("tasks", ["stages", "store", "flow", "engine", "leveling"]),
        ("stages", ["store", "flow", "leveling", "evaluation", "campaign"]),
        ("store", ["stages", "corpus", "flow", "leveling", "evaluation", "campaign", "engine"]),
        ("corpus", ["stages", "flow", "leveling", "evaluation", "campaign", "engine"]),
        ("flow.py", ["leveling", "evaluation", "report", "campaign"]),
        ("report", ["flow", "leveling", "evaluation", "campaign", "engine", "stages"]),
        ("sizing", ["flow", "leveling", "evaluation", "campaign", "engine", "stages", "report"]),
        ("accelerators.py", ["config", "store", "leveling", "sizing"]),
        ("ledger.py", ["records", "tasks", "stages", "store", "flow", "engine"]),
        ("corpus/places", ["corpus.sources", "corpus.index", "corpus.read", "store"]),
        ("corpus/sources", ["corpus.index", "corpus.read", "store"]),
        ("telemetry.py", ["records", "tasks", "stages", "store", "flow", "engine", "corpus"]),
        ("object_store.py", ["store", "corpus", "flow"]),
        ("checkpoints.py", ["store", "corpus", "flow", "engine"]),
        ("engine", ["stages", "store", "flow", "leveling", "evaluation", "campaign"]),
        ("leveling", ["evaluation", "campaign", "stages", "engine"]),
        ("evaluation", ["campaign", "leveling", "flow"]),
    ],
)
def test_imports_go_one_way(layer: str, not_from: list[str]) -> None:
    place = PACKAGE / layer
    files = [place] if place.is_file() else list(place.rglob("*.py"))
    assert files
    for path in files:
        for name in imports(path):
            for other in not_from:
                assert not f"{name}.".startswith(f"mpa_ray.{other}."), f"{path} imports {name}"


@pytest.mark.parametrize("job", sorted(p.name for p in (ROOT / "jobs").glob("*.py")))
def test_help_imports_nothing_heavy(job: str) -> None:
    code = (
        "import sys, runpy\n"
        f"sys.argv = ['{job}', '--help']\n"
        "try:\n"
        f"    runpy.run_path('jobs/{job}', run_name='__main__')\n"
        "except SystemExit as stop:\n"
        "    assert stop.code == 0, stop.code\n"
        "heavy = {'torch', 'ray', 'vllm', 'transformers', 'pyarrow'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout
