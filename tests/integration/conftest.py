"""A local Ray cluster that all integration tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mpa_ray.pipeline.cluster import start_ray


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    import ray

    start_ray()
    yield
    ray.shutdown()
