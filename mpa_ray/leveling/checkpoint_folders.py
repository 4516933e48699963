"""The folders of checkpoints. Each command that has owned a training run has a folder that no other owner changes."""

from __future__ import annotations

import json
import logging
from typing import Any

from mpa_ray.storage.storage import Storage

logger = logging.getLogger(__name__)

_SNAPSHOT = "checkpoint_manager_snapshot.json"
"""The file in which Ray Train lists the complete checkpoints of a folder."""


def checkpoints_name(owner: int) -> str:
    """The name of an owner's folder, inside the folder of the training."""
    return "checkpoints" if owner == 1 else f"checkpoints-{owner}"


def inherited_checkpoint(storage: Storage, folder: str, owner: int) -> str | None:
    """The folder of the latest checkpoint that an earlier owner completed; None if there is none."""
    for earlier in range(owner - 1, 0, -1):
        name = _last_complete(storage, f"{folder}/{checkpoints_name(earlier)}")
        if name is not None:
            return f"{folder}/{checkpoints_name(earlier)}/{name}"
    return None


def drop_earlier(storage: Storage, folder: str, owner: int, inherited: str | None) -> None:
    """Remove the checkpoints of the earlier owners, but keep the folder that holds the inherited checkpoint."""
    file_system, root = storage.arrow()
    for earlier in range(1, owner):
        name = f"{folder}/{checkpoints_name(earlier)}"
        if inherited is None or not inherited.startswith(f"{name}/"):
            file_system.delete_dir_contents(f"{root}/{name}", missing_dir_ok=True)


def _last_complete(storage: Storage, folder: str) -> str | None:
    try:
        snapshot: dict[str, Any] = json.loads(storage.read(f"{folder}/{_SNAPSHOT}"))
        latest = snapshot["latest_checkpoint_result"]
        name: str | None = latest["checkpoint_dir_name"] if latest else None
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        # Ray Train was killed while it wrote the file. The training repeats some steps, but no result is lost.
        logger.warning("%s/%s cannot be read, so its checkpoints are not used: %s", folder, _SNAPSHOT, error)
        return None
    return name
