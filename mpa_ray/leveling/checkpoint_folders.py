"""The folders of checkpoints. Each command that has owned a training run has a folder that no other owner changes."""

from __future__ import annotations

from mpa_ray.run.checkpoint_files import checkpoints_name, complete_checkpoints
from mpa_ray.storage.storage import Storage


def inherited_checkpoint(storage: Storage, folder: str, owner: int) -> str | None:
    """The folder of the latest checkpoint that an earlier owner completed; None if there is none."""
    for earlier in range(owner - 1, 0, -1):
        for checkpoint in complete_checkpoints(storage, f"{folder}/{checkpoints_name(earlier)}"):
            return checkpoint
    return None


def drop_earlier(storage: Storage, folder: str, owner: int, inherited: str | None) -> None:
    """Remove the checkpoints of the earlier owners, but keep the folder that holds the inherited checkpoint."""
    file_system, root = storage.arrow()
    for earlier in range(1, owner):
        name = f"{folder}/{checkpoints_name(earlier)}"
        if inherited is None or not inherited.startswith(f"{name}/"):
            file_system.delete_dir_contents(f"{root}/{name}", missing_dir_ok=True)
