"""Recount a run from its files: every image in exactly one state, nothing missing, nothing twice."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from mpa_ray.config import measured_as
from mpa_ray.errors import ConfigError
from mpa_ray.observability.progress import Progress
from mpa_ray.records import State
from mpa_ray.run.dataset import ShardedDataset, ahead
from mpa_ray.run.parity_export import read_parity
from mpa_ray.run.run import Manifest, Run


def audit(run: Run) -> dict[str, Any]:
    """The counts, and under `problems` whatever is missing, doubled or unaccounted for.

    `dropped` and `failed` sum over the students, or tell of the teacher's pass alone before any student has verdicts.
    """
    manifest = run.manifest()
    problems: list[str] = []
    names = student_names(run)
    students: dict[str, Counts] = {}
    total = manifest.num_shards * (1 + len(names))
    with Progress("audit", total, "shards", file=sys.stderr) as progress:
        states, annotated = _audit_annotations(run, manifest, problems, progress)
        for name in names:
            students[name], kept = _audit_verdicts(run, manifest, name, problems, progress)
            _audit_parity(run, name, kept, problems)
    counted = [c for c in students.values() if c] or [states]
    return {
        "images": manifest.num_images,
        "annotated": annotated,
        "kept": {name: counts.get((State.KEPT, None), 0) for name, counts in students.items()},
        "dropped": _by_reason(counted, State.DROPPED),
        "failed": _by_reason(counted, State.FAILED),
        "students": {
            name: {"dropped": _by_reason([c], State.DROPPED), "failed": _by_reason([c], State.FAILED)}
            for name, c in students.items()
        },
        "problems": problems,
    }


Counts = Counter[tuple[str, str | None]]
_ROW = ["annotation_id", "image_id", "state", "reason"]


def student_names(run: Run) -> list[str]:
    """The students of the run's latest configuration. Raises ConfigError where nothing has been run."""
    return [student["name"] for student in _config(run).get("students", [])]


def evaluated(run: Run) -> dict[str, list[str]]:
    """The benchmarks of the latest configuration, with the models that may have answered them."""
    settings = _config(run).get("evaluate")
    if settings is None:
        return {}
    models = ["teacher"]
    for student in _config(run).get("students", []):
        trained = map(measured_as, student.get("arms", ["parity"]))
        models += [f"{student['name']}.{when}" for when in ("before", *trained)]
    models += [model["name"] for model in settings["models"]]
    return {benchmark["name"] or benchmark["kind"]: models for benchmark in settings["benchmarks"]}


def _config(run: Run) -> dict[str, Any]:
    try:
        config: dict[str, Any] = run.read_json("run.json")["config"]
    except FileNotFoundError:
        raise ConfigError("run_dir", run.storage.root, "has no run.json.", "Give the directory of a run.") from None
    return config


def _audit_annotations(run: Run, manifest: Manifest, problems: list[str], progress: Progress) -> tuple[Counts, int]:
    states: Counts = Counter()
    num_images = 0
    ids: Counter[str] = Counter()
    corpus = _shards(run.corpus, manifest, ["image_id"], problems)
    annotations = _shards(run.annotations, manifest, _ROW, problems)
    for shard, refs, rows in zip(manifest.shards, corpus, annotations, strict=True):
        progress.advance(1)
        if refs is None:
            problems.append(f"corpus: shard {shard} is missing")
            continue
        expected = [ref["image_id"] for ref in refs]
        num_images += len(expected)
        ids.update(expected)
        if rows is None:
            problems.append(f"annotations: shard {shard} is missing ({len(expected)} images)")
            continue
        found = list(dict.fromkeys(row["image_id"] for row in rows))
        _compare(f"annotations shard {shard}: images", expected, found, problems)
        _no_doubles(f"annotations shard {shard}", [row["annotation_id"] for row in rows], problems)
        states.update((row["state"], row["reason"]) for row in rows)
    if num_images != manifest.num_images:
        problems.append(f"corpus: {num_images} images in its shards, {manifest.num_images} in its manifest")
    problems += [f"corpus: image {i} is in it {n} times" for i, n in ids.items() if n > 1]
    return states, sum(n for (state, _), n in states.items() if state == State.KEPT)


def _audit_verdicts(
    run: Run, manifest: Manifest, student: str, problems: list[str], progress: Progress
) -> tuple[Counts, list[str]]:
    counts: Counts = Counter()
    kept: list[str] = []
    annotations = _shards(run.annotations, manifest, ["annotation_id"], [])
    verdicts = _shards(run.verdicts(student), manifest, _ROW, problems)
    for shard, asked, rows in zip(manifest.shards, annotations, verdicts, strict=True):
        progress.advance(1)
        if asked is None:
            continue
        if rows is None:
            problems.append(f"verdicts/{student}: shard {shard} is missing ({len(asked)} annotations)")
            continue
        expected = [row["annotation_id"] for row in asked]
        found = [row["annotation_id"] for row in rows]
        _compare(f"verdicts/{student} shard {shard}: rows", expected, found, problems)
        counts.update((row["state"], row["reason"]) for row in rows)
        kept += [row["annotation_id"] for row in rows if row["state"] == State.KEPT]
    return counts, kept


def _audit_parity(run: Run, student: str, kept: list[str], problems: list[str]) -> None:
    if not run.is_identified(student):
        problems.append(f"{run.parity_dir(student)}: not exported")
        return
    try:
        exported = [sample.annotation_id for sample in read_parity(run, student)]
    except (FileNotFoundError, ValueError, pa.ArrowInvalid) as error:
        problems.append(f"parity/{student}: cannot be read ({error})")
        return
    _compare(f"parity/{student}: kept rows", kept, exported, problems)


def _shards(
    dataset: ShardedDataset[Any], manifest: Manifest, columns: list[str], problems: list[str]
) -> Iterator[list[dict[str, Any]] | None]:
    """Of each shard the rows' columns; None where it is not committed. One that cannot be read is a problem, too."""

    def rows(shard: str) -> list[dict[str, Any]] | str | None:
        if not dataset.is_committed(shard):
            return None
        try:
            return dataset.columns(shard, columns)
        except (FileNotFoundError, ValueError, KeyError, pa.ArrowInvalid) as error:
            return f"{dataset.folder}: shard {shard} cannot be read ({error})"

    for found in ahead(rows, manifest.shards):
        if isinstance(found, str):
            problems.append(found)
        yield None if isinstance(found, str) else found


def _compare(what: str, expected: list[str], found: list[str], problems: list[str]) -> None:
    missing, extra = Counter(expected) - Counter(found), Counter(found) - Counter(expected)
    if missing:
        problems.append(f"{what} missing: {_some(missing)}")
    if extra:
        problems.append(f"{what} too many: {_some(extra)}")


def _no_doubles(what: str, ids: list[str], problems: list[str]) -> None:
    doubled = Counter({name: n for name, n in Counter(ids).items() if n > 1})
    if doubled:
        problems.append(f"{what} doubled: {_some(doubled)}")


def _some(names: Counter[str]) -> str:
    shown = ", ".join(list(names)[:5])
    return f"{shown} and {len(names) - 5} more" if len(names) > 5 else shown


def _by_reason(counts: list[Counts], state: State) -> dict[str, int]:
    reasons: Counter[str] = Counter()
    for counted in counts:
        reasons.update({str(reason): n for (found, reason), n in counted.items() if found == state})
    return dict(reasons.most_common())
