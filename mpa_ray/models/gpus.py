"""Memory and peak speed of GPUs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU, from NVIDIA's data sheets."""

    memory_gib: float
    """The memory that a process can use, as the driver reports it. It is a little less than the nominal size."""
    tflops: float
    """Dense bfloat16 operations (float16 on a T4), in 10^12 per second."""
    bandwidth_gb_s: float
    """Memory bandwidth, in 10^9 bytes per second."""


GPUS = {
    "B200": Gpu(178.0, 2250.0, 8000.0),
    "GH200": Gpu(94.5, 989.4, 4000.0),
    "H200": Gpu(139.0, 989.4, 4800.0),
    "H100 PCIe": Gpu(79.0, 756.0, 2000.0),
    "H100": Gpu(79.0, 989.4, 3350.0),
    "A100-80G": Gpu(79.0, 312.0, 2039.0),
    "A100-40G": Gpu(39.0, 312.0, 1555.0),
    "A100": Gpu(39.0, 312.0, 1555.0),
    "L40S": Gpu(44.0, 362.05, 864.0),
    "L4": Gpu(22.0, 121.0, 300.0),
    "A10G": Gpu(22.0, 70.0, 600.0),
    "A10": Gpu(22.0, 125.0, 600.0),
    "T4": Gpu(14.5, 65.0, 320.0),
}
"""GPUs by Ray's name (`accelerator_type`) or, for `H100 PCIe`, by the driver's name. `A100` is the GPU with 40 GB. A
name comes before the names that it contains (`GH200` before `H200`), since `peak_tflops` takes the first match."""


def peak_tflops(name: str) -> float | None:
    """The peak of the GPU with this driver name, in 10^12 bfloat16 operations per second; None if it is not known."""
    return next((gpu.tflops for ray_name, gpu in GPUS.items() if ray_name in name), None)
