"""Readers of labelled benchmarks in their published formats."""

from mpa_ray.evaluation.benchmarks.benchmark import (
    BENCHMARKS,
    Benchmark,
    labelled_files,
    question_files,
    read_benchmark,
)
from mpa_ray.evaluation.benchmarks.images import check_images

__all__ = ["BENCHMARKS", "Benchmark", "check_images", "labelled_files", "question_files", "read_benchmark"]
