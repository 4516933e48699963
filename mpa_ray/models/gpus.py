"""What GPUs have and can do at most."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU, from NVIDIA's data sheets."""

    memory_gib: float
    """That a process may use: a little less than its name says, as drivers report it."""
    tflops: float
    """Dense operations in bfloat16 (of T4 in float16), 10^12 a second."""
    bandwidth_gb_s: float
    """Of its memory, 10^9 bytes a second."""


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
"""By the names that Ray gives them (`accelerator_type`); A100 alone is the smaller one. Of names that contain one
another the longer first."""


def peak_tflops(name: str) -> float | None:
    """Of a GPU by the name that its driver gives, in 10^12 bfloat16 operations a second; None where it is not known."""
    return next((gpu.tflops for known, gpu in GPUS.items() if known in name), None)
