"""Serving settings for a model with random weights, the same for every measurement that starts vLLM."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MIN_PIXELS = 56 * 56

_FAST_START: Mapping[str, Any] = {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"}
"""CUDA graphs for decoding only and no compilation, so that an engine starts in about half the time."""


@dataclass(frozen=True)
class Serving:
    """The sizes of an engine."""

    side_px: int
    max_num_seqs: int
    max_model_len: int
    num_renderers: int
    on_gpu: bool
    engine_args: Mapping[str, Any]
    """More arguments of vLLM, which override those set here."""

    @property
    def dtype(self) -> str:
        return "bfloat16" if self.on_gpu else "float32"

    def model_settings(self, model: str) -> dict[str, Any]:
        """A model's part of a configuration, as a YAML file would hold it.

        Args:
            model: A checkpoint's folder; its weights are not read.
        """
        arguments: dict[str, Any] = {"load_format": "dummy"}
        if self.on_gpu:
            arguments |= {
                "compilation_config": dict(_FAST_START),
                "max_cudagraph_capture_size": self.max_num_seqs,
                "max_num_batched_tokens": 8192,
            }
        return {
            "model": model,
            "engine": {
                "dtype": self.dtype,
                "max_num_seqs": self.max_num_seqs,
                "max_model_len": self.max_model_len,
                "num_renderers": self.num_renderers,
                "engine_args": arguments | dict(self.engine_args),
            },
            "gpus_per_replica": 1 if self.on_gpu else 0,
            "cpus_per_replica": self.num_renderers + 1 if self.on_gpu else 1,
            "min_pixels": MIN_PIXELS,
            "max_pixels": self.side_px**2,
        }


def disable_flashinfer_sampler() -> None:
    """Make vLLM sample without FlashInfer, which it otherwise needs on CUDA; call this before vLLM is imported."""
    os.environ.setdefault("VLLM_USE_FLASHINFER_SAMPLER", "0")
