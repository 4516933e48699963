"""Finds shards that were committed with settings that differ from those of their dataset."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from mpa_ray.config import Arm
from mpa_ray.run.dataset import ShardedDataset
from mpa_ray.run.prefetch import prefetch
from mpa_ray.run.recorded_config import arms_by_student, models_by_benchmark
from mpa_ray.run.run import Run

_NUM_SHARDS_SHOWN = 5


def audit_fingerprints(run: Run) -> list[str]:
    """Compare the digest in each marker with that of the dataset's fingerprint. Returns one sentence for each problem.

    The function reads only markers and fingerprints. Markers of earlier versions have no digest and are not compared.

    Raises:
        ConfigError: the directory holds no run, or a fingerprint is damaged.
    """
    return [problem for name, dataset in _datasets(run) for problem in _problems(run, name, dataset)]


def _problems(run: Run, name: str, dataset: ShardedDataset[Any]) -> Iterator[str]:
    shards: defaultdict[str, list[str]] = defaultdict(list)
    for history in prefetch(dataset.history, dataset.committed()):
        for digest in {commit.fingerprint for commit in history if commit.fingerprint}:
            shards[digest].append(history[0].shard)
    if not shards:
        return
    fixed = run.fingerprints.digest(name)
    if not fixed:
        yield f"{dataset.folder}: the fingerprint of {name} is missing: restore the folder fingerprints/ from a copy"
        return
    for digest, others in sorted(shards.items()):
        if digest != fixed:
            named = ", ".join(others[:_NUM_SHARDS_SHOWN]) + (", ..." if len(others) > _NUM_SHARDS_SHOWN else "")
            yield (
                f"{dataset.folder}: {len(others)} shards were made with other settings than the dataset "
                f"(fingerprint {digest}, not {fixed}): {named}: make them again in a new run_dir"
            )


def _datasets(run: Run) -> Iterator[tuple[str, ShardedDataset[Any]]]:
    """The datasets of a run, each with the name of its fingerprint."""
    arms: dict[str, list[Arm]] = arms_by_student(run)
    flat: list[ShardedDataset[Any]] = [run.corpus, run.annotations, *map(run.verdicts, arms)]
    for benchmark, models in models_by_benchmark(run).items():
        flat += [run.questions(benchmark), *(run.predictions(benchmark, model) for model in models)]
    yield from ((dataset.folder, dataset) for dataset in flat)
    for student, names in arms.items():
        for arm in names:
            yield run.student_dir(student, arm), run.epoch(run.training_dir(student, arm))
