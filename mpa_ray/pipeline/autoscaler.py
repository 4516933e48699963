"""Let every pass use the whole cluster. Wraps Ray Data's autoscaler, which is private in Ray 2.60."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ray
from ray.data._internal.cluster_autoscaler import ClusterAutoscaler
from ray.data._internal.execution import streaming_executor


def use_whole_cluster() -> None:
    """Wrap the autoscaler of every pass that this process starts from now on; calling it again changes nothing."""
    if not isinstance(streaming_executor.create_cluster_autoscaler, _AutoscalerFactory):
        streaming_executor.create_cluster_autoscaler = _AutoscalerFactory(streaming_executor.create_cluster_autoscaler)


class _AutoscalerFactory:
    """Makes Ray Data's autoscaler for a pass, and wraps it."""

    def __init__(self, make: Callable[..., ClusterAutoscaler]) -> None:
        self._make = make

    def __call__(self, *args: Any, **kwargs: Any) -> ClusterAutoscaler:
        return _WholeClusterAutoscaler(self._make(*args, **kwargs))


class _WholeClusterAutoscaler(ClusterAutoscaler):
    """Ray Data's autoscaler for a pass that may use all CPUs and GPUs of the cluster.

    Ray Data reserves resources per dataset, first come, first served, and divides the rest of every node among the
    datasets, in whole CPUs and GPUs. While one pass is busy, a second pass then gets no CPU for fetching images and
    makes no progress. With this class, only the admission controller decides which passes run at the same time, and
    pools that may grow take all free resources.
    """

    def __init__(self, ray_data: ClusterAutoscaler) -> None:
        self._ray_data = ray_data

    def try_trigger_scaling(self) -> None:
        self._ray_data.try_trigger_scaling()

    def on_executor_shutdown(self) -> None:
        self._ray_data.on_executor_shutdown()

    def get_total_resources(self) -> Any:
        total = ray.cluster_resources()
        return self._ray_data.get_total_resources().copy(cpu=total.get("CPU", 0.0), gpu=total.get("GPU", 0.0))
