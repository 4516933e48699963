"""The trained student as others take it: an adapter, and an ordinary Hugging Face checkpoint."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch

from mpa_ray.config import LevelConfig, LoraConfig
from mpa_ray.store.storage import Storage


def export(
    model: Any, weights: dict[str, torch.Tensor], processor: Any, level: LevelConfig, storage: Storage, folder: str,
    card: str,
) -> None:  # fmt: skip
    """Write `adapter/` (with LoRA) and `merged/` into the run.

    Args:
        model: The student before training, prepared as for training.
        weights: What training made of its trainable weights.
        processor: Saved beside the weights, with its chat template.
        level: How it was trained.
        storage: The run's.
        folder: Where in the run.
        card: The model card.

    Raises:
        AssertionError: weights that the model does not know, or that it lacks.
    """
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert weights.keys() >= trained, f"training gave no {sorted(trained - weights.keys())[:3]}"
    unexpected = model.load_state_dict(weights, strict=False).unexpected_keys
    assert not unexpected, f"training gave {unexpected[:3]}, which the model does not have"
    with tempfile.TemporaryDirectory() as scratch:
        if isinstance(level.method, LoraConfig):
            _put(model, Path(scratch, "adapter"), card, storage, f"{folder}/adapter")
            model = model.merge_and_unload()
        processor.save_pretrained(Path(scratch, "merged"))
        _put(model, Path(scratch, "merged"), card, storage, f"{folder}/merged")


def _put(model: Any, source: Path, card: str, storage: Storage, target: str) -> None:
    model.save_pretrained(source)
    (source / "README.md").write_text(card, encoding="utf-8")
    storage.put_folder(source, target)
