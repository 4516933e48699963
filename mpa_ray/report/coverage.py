"""Which kinds of answers the sets of a run hold, and how far they differ in that."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from mpa_ray.config import RunConfig
from mpa_ray.metrics.answer_types import TYPES, answer_type, divergence
from mpa_ray.records import State, Verdict
from mpa_ray.run.run import Run


def coverage(run: Run, config: RunConfig) -> dict[str, Any]:
    """Answers by type in D_PA, in each student's D_PI and drops, and in the labelled benchmarks.

    With `divergences`: between every two sets of which one is D_PA or a benchmark, the Jensen-Shannon divergence in
    bits, from 0 (equal shares) to 1.
    """
    shards = run.manifest().shards
    annotated: Counter[str] = Counter()
    dropped: dict[str, Counter[str]] = {}
    for row in run.annotations.rows(shards):
        if row.answer is not None and row.state == State.KEPT:
            annotated[answer_type(row.answer)] += 1
        elif row.answer is not None:
            dropped.setdefault(f"dropped: {row.reason}", Counter())[answer_type(row.answer)] += 1
    sets = {"D_PA": annotated, **dropped}
    for student in config.students:
        sets |= _of_student(student.name, run.verdicts(student.name).rows(shards))
    references = _benchmarks(run, config)
    sets |= references
    bases = ["D_PA", *references]
    return {
        "types": list(TYPES),
        "sets": {name: dict(counts) for name, counts in sets.items()},
        "divergences": {
            name: {base: divergence(counts, sets[base]) for base in bases if base != name}
            for name, counts in sets.items()
            if counts
        },
    }


def _of_student(student: str, verdicts: Iterable[Verdict]) -> dict[str, Counter[str]]:
    sets: dict[str, Counter[str]] = {f"D_PI of {student}": Counter()}
    for verdict in verdicts:
        # What was not judged is among the drops of D_PA already.
        if verdict.answer is None or verdict.teacher_agrees is None:
            continue
        name = f"D_PI of {student}" if verdict.state == State.KEPT else f"{student}: {verdict.reason}"
        sets.setdefault(name, Counter())[answer_type(verdict.answer)] += 1
    return sets


def _benchmarks(run: Run, config: RunConfig) -> dict[str, Counter[str]]:
    sets = {}
    for benchmark in config.evaluate.benchmarks if config.evaluate is not None else []:
        folder = run.benchmark_dir(benchmark.label)
        if run.storage.exists(f"{folder}/manifest.json"):
            rows = run.questions(benchmark.label).rows(run.manifest(folder).shards)
            sets[f"benchmark {benchmark.label}"] = Counter(answer_type(row.answers[0]) for row in rows if row.answers)
    return sets
