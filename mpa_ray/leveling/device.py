"""What accelerators can do at most."""

from __future__ import annotations

_PEAK_TFLOPS = {
    "B200": 2250.0, "GH200": 989.4, "H200": 989.4, "H100 PCIe": 756.0, "H100": 989.4, "A100": 312.0, "L40S": 362.05,
    "L4": 121.0, "A10G": 70.0, "A10": 125.0,
}  # fmt: skip
"""Dense bfloat16, from NVIDIA's data sheets; of names that contain one another the longer first."""


def peak_tflops(name: str) -> float | None:
    """Of a GPU by the name that its driver gives, in 10^12 bfloat16 operations a second; None where it is not known."""
    return next((peak for known, peak in _PEAK_TFLOPS.items() if known in name), None)
