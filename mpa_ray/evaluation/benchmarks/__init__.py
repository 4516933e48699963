"""Labelled benchmarks as they are published, read into rows."""

from mpa_ray.evaluation.benchmarks.benchmark import BENCHMARKS, Benchmark, read_benchmark
from mpa_ray.evaluation.benchmarks.images import check_images

__all__ = ["BENCHMARKS", "Benchmark", "check_images", "read_benchmark"]
