"""Damages files of a run, and compares runs without the code of the package."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

UNCHECKED = {
    "writable": "reserves space",
    "unread": "counts commands",
    "suspects": "saves engines, and is ignored when it is damaged",
    "README.md": "a card that scoring writes again",
    ".beat": "changes while a student is trained",
    "index.html": "a page that the report writes again",
    "checkpoint_manager_snapshot.json": "is a list of Ray Train, which is ignored when it is damaged",
    "validate_storage_marker": "is a file of Ray Train",
    "tfevents": "curves for TensorBoard, which training.json and log/ also hold",
    "damaged/": "files that a repair has moved away",
}
"""Files that no result depends on, by a part of their path."""


def kind_of(path: str) -> str:
    """The path without what differs between files of the same kind."""
    parts = ["checkpoint" if part.startswith("checkpoint_") else part for part in path.split("/") if part]
    name = parts[-1].split("-")[0] + (".parquet" if parts[-1].endswith(".parquet") else "")
    return "/".join([*parts[:-1], "N" if name[:1].isdigit() else name])


def checked_files(folder: Path) -> list[str]:
    """The files of a run that a deep audit must read."""
    paths = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return [path for path in paths if not any(part in path for part in UNCHECKED)]


def one_of_each_kind(folder: Path) -> list[str]:
    """One file of each kind, the last by its name."""
    return list({kind_of(path): path for path in checked_files(folder)}.values())


def flipped(content: bytes, bit: int) -> bytes:
    """The content with another value of one bit."""
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def flip(path: Path, bit: int) -> None:
    path.write_bytes(flipped(path.read_bytes(), bit))


def values_of(path: Path) -> Any:
    """What a JSON file says; None if it is not JSON."""
    try:
        return json.loads(path.read_bytes())
    except ValueError:
        return None


def rows_of(folder: Path) -> dict[str, Any]:
    """The rows that the newest markers name, and the exports."""
    newest: dict[str, Any] = {}
    # The folders of the first generation come first.
    for path in sorted([*folder.rglob("commits/*.json"), *folder.rglob("generations/*.json")]):
        marker = values_of(path)
        if isinstance(marker, dict) and "shard" in marker:
            newest[f"{path.parents[1].relative_to(folder)}/{path.name.partition('.')[0]}"] = marker
    # Withdrawn rows have no file. Those that nothing needs are not made again.
    committed = {name: marker["file"] for name, marker in newest.items() if marker["file"]}
    results: dict[str, Any] = {name: pq.read_table(folder / file) for name, file in committed.items()}
    exports = [
        *folder.glob("parity/*/*"),
        *folder.glob("students/*/*/merged/*"),
        *folder.glob("students/*/*/adapter/*"),
    ]
    for path in [*exports, folder / "evaluation/scores.json"]:
        if path.is_file() and path.name not in ("manifest.json", "README.md"):
            results[path.relative_to(folder).as_posix()] = path.read_bytes()
    return results


def different_results(before: dict[str, Any], after: dict[str, Any], ignored: Collection[str] = ()) -> list[str]:
    """The names of the results that differ. Times, in columns that end with `_s`, are not compared."""
    names = (before.keys() | after.keys()) - set(ignored)
    return sorted(name for name in names if not _same(before.get(name), after.get(name)))


def _same(before: Any, after: Any) -> bool:
    if before is None or after is None or isinstance(before, bytes):
        return bool(before == after)
    names = [name for name in before.schema.names if not name.endswith("_s")]
    return bool(before.select(names).equals(after.select(names)))
