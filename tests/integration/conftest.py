"""A local Ray cluster that all integration tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from mpa_ray.pipeline.cluster import start_ray

# Ray Train looks for the end of a training this often. By default, it waits up to 2 seconds.
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
# Processes report their metrics this often. By default, they wait for 10 seconds.
os.environ.setdefault("RAY_metrics_report_interval_ms", "1000")


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    import ray

    start_ray()
    yield
    ray.shutdown()
