"""Recount a run from its files: every image in exactly one state, nothing missing, nothing twice."""

from __future__ import annotations

from collections import Counter
from typing import Any

from mpa_ray.errors import ConfigError
from mpa_ray.records import State
from mpa_ray.store.run import Manifest, Run


def audit(run: Run) -> dict[str, Any]:
    """The counts, and under `problems` whatever is missing, doubled or unaccounted for.

    `dropped` and `failed` sum over the students, or tell of the teacher's pass alone before any student has verdicts.
    """
    manifest = run.manifest()
    problems: list[str] = []
    states, annotated = _audit_annotations(run, manifest, problems)
    students = {name: _audit_verdicts(run, manifest, name, problems) for name in _students(run)}
    counted = [c for c in students.values() if c] or [states]
    for name, counts in students.items():
        _audit_parity(run, name, counts.get((State.KEPT, None), 0), problems)
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


def _students(run: Run) -> list[str]:
    try:
        config = run.read_json("run.json")["config"]
    except FileNotFoundError:
        raise ConfigError("run_dir", run.storage.root, "has no run.json.", "Give the directory of a run.") from None
    return [student["name"] for student in config["students"]]


def _audit_annotations(run: Run, manifest: Manifest, problems: list[str]) -> tuple[Counts, int]:
    states: Counts = Counter()
    num_images = 0
    ids: Counter[str] = Counter()
    for shard in manifest.shards:
        expected = [ref.image_id for ref in run.corpus.read(shard)]
        num_images += len(expected)
        ids.update(expected)
        if not run.annotations.is_committed(shard):
            problems.append(f"annotations: shard {shard} is missing ({len(expected)} images)")
            continue
        rows = run.annotations.read(shard)
        _compare(
            f"annotations shard {shard}: images", expected, list(dict.fromkeys(r.image_id for r in rows)), problems
        )
        _no_doubles(f"annotations shard {shard}", [r.annotation_id for r in rows], problems)
        states.update((r.state, r.reason) for r in rows)
    if num_images != manifest.num_images:
        problems.append(f"corpus: {num_images} images in its shards, {manifest.num_images} in its manifest")
    problems += [f"corpus: image {i} is in it {n} times" for i, n in ids.items() if n > 1]
    return states, sum(n for (state, _), n in states.items() if state == State.KEPT)


def _audit_verdicts(run: Run, manifest: Manifest, student: str, problems: list[str]) -> Counts:
    counts: Counts = Counter()
    verdicts = run.verdicts(student)
    for shard in manifest.shards:
        if not run.annotations.is_committed(shard):
            continue
        expected = [row.annotation_id for row in run.annotations.read(shard)]
        if not verdicts.is_committed(shard):
            problems.append(f"verdicts/{student}: shard {shard} is missing ({len(expected)} annotations)")
            continue
        rows = verdicts.read(shard)
        _compare(f"verdicts/{student} shard {shard}: rows", expected, [r.annotation_id for r in rows], problems)
        counts.update((r.state, r.reason) for r in rows)
    return counts


def _audit_parity(run: Run, student: str, num_kept: int, problems: list[str]) -> None:
    try:
        num_rows = run.read_json(f"parity/{student}/manifest.json")["num_samples"]
    except FileNotFoundError:
        problems.append(f"parity/{student}: not exported")
        return
    if num_rows != num_kept:
        problems.append(f"parity/{student}: {num_rows} samples, but {num_kept} verdicts are kept")


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
