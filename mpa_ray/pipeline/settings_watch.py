"""Ends a pass when another command has committed rows with other settings to the same dataset."""

from __future__ import annotations

import logging
import threading
from typing import Any

from mpa_ray.errors import FingerprintMismatch, RunError
from mpa_ray.pipeline.graph_rows import Failure
from mpa_ray.run.dataset import ShardTarget

logger = logging.getLogger(__name__)

_INTERVAL_S = 5.0


class SettingsWatch:
    """Compares the settings of a pass with those of the dataset, in a thread of the driver, until they agree.

    Every commit also compares them, but a large model may need minutes for its first shard, which would be wasted.
    """

    def __init__(self, target: ShardTarget[Any], coordinator: Any, interval_s: float = _INTERVAL_S) -> None:
        """Begin to compare.

        Args:
            target: The dataset that the pass writes.
            coordinator: The actor that ends the pass.
            interval_s: Seconds between two comparisons.
        """
        self._target, self._coordinator, self._interval_s = target, coordinator, interval_s
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None:
        self._is_over.set()

    def _watch(self) -> None:
        while not self._is_over.wait(self._interval_s):
            try:
                if self._target.check_fingerprint():
                    # A fixed fingerprint never changes.
                    return
            except FingerprintMismatch as error:
                self._coordinator.give_up.remote(Failure.of(error))
                return
            except (OSError, RunError) as error:
                logger.warning("the settings of the run could not be compared: %s", error)
