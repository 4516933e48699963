"""Measure the speed of training: samples, tokens, padding, waiting for data, and operations."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict

import psutil
import torch
from torch.utils.flop_counter import FlopCounterMode

from mpa_ray.leveling.collator import Batch
from mpa_ray.leveling.step_data import StepCounts
from mpa_ray.models.gpus import peak_tflops


class Pace:
    """Measures the speed of training between two log entries."""

    def __init__(self, num_workers: int) -> None:
        self._num_workers = num_workers
        self._started = time.monotonic()
        self._counts: Counter[str] = Counter()
        self._wait_s = 0.0
        self._flops_per_token: float | None = None

    def add(self, counts: StepCounts, wait_s: float) -> None:
        """Add the counts of a step on all workers, and the time that this worker waited for the data of the step."""
        self._counts.update(asdict(counts))
        self._wait_s += wait_s

    @contextmanager
    def count_operations(self, batch: Batch) -> Iterator[None]:
        """On the first call, count the operations of the block: the forward and backward pass of a micro-batch."""
        if self._flops_per_token is not None:
            yield
            return
        with FlopCounterMode(display=False) as counter:
            yield
        self._flops_per_token = counter.get_total_flops() / batch["attention_mask"].numel()

    def measure(self) -> dict[str, float]:
        """The speed since the previous call, as fields of a `LogEntry`."""
        now = time.monotonic()
        elapsed_s = now - self._started
        counts = self._counts
        num_computed = counts["num_computed_tokens"]
        tflops = (self._flops_per_token or 0.0) * num_computed / elapsed_s / self._num_workers / 1e12
        on_gpu = torch.cuda.is_available()
        memory = torch.cuda.max_memory_allocated() if on_gpu else psutil.Process().memory_info().rss
        speed = {
            "samples_per_s": counts["num_samples"] / elapsed_s,
            "supervised_tokens_per_s": counts["num_supervised_tokens"] / elapsed_s,
            "tokens_per_s": counts["num_tokens"] / elapsed_s,
            "padding_share": 1 - counts["num_tokens"] / num_computed if num_computed else 0.0,
            "data_wait_share": self._wait_s / elapsed_s,
            "memory_gib": memory / 2**30,
            "tflops_per_s": tflops,
        }
        peak = peak_tflops(torch.cuda.get_device_name()) if on_gpu else None
        if peak:
            speed["mfu"] = tflops / peak
        self._started = now
        self._counts = Counter()
        self._wait_s = 0.0
        return speed
