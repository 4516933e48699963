"""Count the answers in D_PA, D_PI and the benchmarks of a run by type, and measure how much these sets differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from mpa_ray.config import RunConfig
from mpa_ray.metrics.answer_types import TYPES, answer_type, divergence
from mpa_ray.records import State, Verdict
from mpa_ray.run.run import Run


@dataclass(frozen=True)
class Coverage:
    """The numbers of answers in each set of a run, by type of answer."""

    types: list[str]
    """All types, in the order of `mpa_ray.metrics.answer_types.TYPES`."""
    sets: dict[str, dict[str, int]]
    """For each set, the number of answers of each type.

    The sets are D_PA, the D_PI of each student, the dropped pairs of each reason, and each benchmark.
    """
    divergences: dict[str, dict[str, float]]
    """For each set, its Jensen-Shannon divergence from D_PA and from each benchmark, in bits.

    It is 0 if the types have equal shares in both sets, and 1 if the sets have no type in common.
    """


def coverage(run: Run, config: RunConfig) -> Coverage:
    """Count the answers of all sets of a run by type."""
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
        sets |= _sets_of_student(student.name, run.verdicts(student.name).rows(shards))
    benchmarks = _benchmarks(run, config)
    sets |= benchmarks
    references = ["D_PA", *benchmarks]
    return Coverage(
        types=list(TYPES),
        sets={name: dict(counts) for name, counts in sets.items()},
        divergences={
            name: {reference: divergence(counts, sets[reference]) for reference in references if reference != name}
            for name, counts in sets.items()
            if counts
        },
    )


def parity_set(student: str) -> str:
    """Return the key of a student's D_PI in `Coverage.sets`."""
    return f"D_PI of {student}"


def _sets_of_student(student: str, verdicts: Iterable[Verdict]) -> dict[str, Counter[str]]:
    sets: dict[str, Counter[str]] = {parity_set(student): Counter()}
    for verdict in verdicts:
        # A pair that was not judged was dropped from D_PA, and `coverage` has counted it there.
        if verdict.answer is None or verdict.teacher_agrees is None:
            continue
        name = parity_set(student) if verdict.state == State.KEPT else f"{student}: {verdict.reason}"
        sets.setdefault(name, Counter())[answer_type(verdict.answer)] += 1
    return sets


def _benchmarks(run: Run, config: RunConfig) -> dict[str, Counter[str]]:
    sets = {}
    for benchmark in config.evaluate.benchmarks if config.evaluate is not None else []:
        folder = run.benchmark_dir(benchmark.label)
        if run.has_manifest(folder):
            rows = run.questions(benchmark.label).rows(run.manifest(folder).shards)
            sets[f"benchmark {benchmark.label}"] = Counter(answer_type(row.answers[0]) for row in rows if row.answers)
    return sets
