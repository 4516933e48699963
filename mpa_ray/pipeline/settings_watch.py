"""Ends a pass when another command has committed rows with other settings to the same dataset."""

from __future__ import annotations

import logging
from typing import Any

from mpa_ray.errors import FingerprintMismatch, RunError
from mpa_ray.pipeline.graph_rows import Failure
from mpa_ray.pipeline.repeated_call import RepeatedCall
from mpa_ray.run.dataset import ShardTarget

logger = logging.getLogger(__name__)

_INTERVAL_S = 5.0


class SettingsWatch(RepeatedCall):
    """Compares the settings of a pass with those of the dataset, in a thread of the driver, until they agree.

    Every commit also compares them, but a large model may need minutes for its first shard, and these minutes would be
    wasted.
    """

    def __init__(self, target: ShardTarget[Any], coordinator: Any, interval_s: float = _INTERVAL_S) -> None:
        """Begin to compare.

        Args:
            target: The dataset that the pass writes.
            coordinator: The actor that ends the pass.
            interval_s: Seconds between two comparisons.
        """
        self._target, self._coordinator = target, coordinator
        super().__init__(self._are_fixed_or_differ, interval_s)

    def _are_fixed_or_differ(self) -> bool:
        try:
            # A fixed fingerprint never changes.
            return self._target.check_fingerprint()
        except FingerprintMismatch as error:
            self._coordinator.give_up.remote(Failure.of(error))
            return True
        except (OSError, RunError) as error:
            logger.warning("the settings of the run could not be compared: %s", error)
            return False
