"""Training curves for TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tensorboardX import SummaryWriter

from mpa_ray.storage.storage import Storage


class TensorBoard:
    """Writes events to a local folder and copies them into the run."""

    def __init__(self, local: Path, storage: Storage, folder: str) -> None:
        self._local = local
        self._storage = storage
        self._folder = folder
        self._writer = SummaryWriter(str(local))

    def add(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()
        self._storage.put_folder(self._local, self._folder)
