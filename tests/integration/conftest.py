"""A local Ray cluster that all integration tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from mpa_ray.pipeline.cluster import start_ray

# Processes report their metrics this often. By default, they wait for 10 seconds.
os.environ.setdefault("RAY_metrics_report_interval_ms", "1000")


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    import ray

    start_ray()
    yield
    ray.shutdown()
