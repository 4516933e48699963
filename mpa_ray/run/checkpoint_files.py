"""The files of a training's checkpoints. Each command that has owned the training has a folder with its checkpoints."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

from mpa_ray.errors import DamagedFile
from mpa_ray.run.checksums import FILES, Checksum, checksums_of, damaged_files
from mpa_ray.run.sealed_json import parse_sealed, sealed
from mpa_ray.storage.storage import Storage

logger = logging.getLogger(__name__)

_SNAPSHOT = "checkpoint_manager_snapshot.json"
"""The file in which Ray Train lists the complete checkpoints of a folder."""
PROGRESS = "progress.json"
"""A file of every checkpoint. A checkpoint without it is not used, so a repair moves it away."""
_CHECKSUMS = "checksums-{}.json"
"""The files of a checkpoint that hold the checksums of the other files, one for each worker."""


def checkpoints_name(owner: int) -> str:
    """The name of an owner's folder, inside the folder of the training."""
    return "checkpoints" if owner == 1 else f"checkpoints-{owner}"


def complete_checkpoints(storage: Storage, folder: str) -> list[str]:
    """The folders of an owner's complete checkpoints, the latest first."""
    try:
        snapshot = json.loads(storage.read(f"{folder}/{_SNAPSHOT}"))
        latest = snapshot["latest_checkpoint_result"]
        results = [latest, *reversed(snapshot["checkpoint_results"])] if latest else []
        names = dict.fromkeys(str(result["checkpoint_dir_name"]) for result in results)
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError) as error:
        # Ray Train was killed while it wrote the file. The training repeats some steps, but no result is lost.
        logger.warning("%s/%s cannot be read, so its checkpoints are not used: %s", folder, _SNAPSHOT, error)
        return []
    return [f"{folder}/{name}" for name in names if storage.exists(f"{folder}/{name}/{PROGRESS}")]


def write_checksums(folder: Path, rank: int) -> None:
    """Store the checksums of this worker's files of a checkpoint in a local folder."""
    content = sealed({FILES: checksums_of(folder)})
    (folder / _CHECKSUMS.format(rank)).write_text(json.dumps(content))


def check_files(folder: Path, part: int = 0, num_parts: int = 1) -> None:
    """Compare the files of a checkpoint in a local folder with their checksums.

    Args:
        folder: The folder.
        part: The number of the part of the files that this worker checks.
        num_parts: The number of parts.

    Raises:
        DamagedFile: a file is damaged or missing.
    """
    files: dict[str, Checksum] = {}
    for path in sorted(folder.glob(_CHECKSUMS.format("*"))):
        try:
            content = parse_sealed(path.read_bytes())
        except ValueError as error:
            raise DamagedFile(str(path), str(error)) from error
        files |= {name: Checksum(**known) for name, known in content[FILES].items()}
    for name in sorted(files)[part::num_parts]:
        try:
            files[name].check(str(folder / name), Checksum.of_file(folder / name))
        except FileNotFoundError as error:
            raise DamagedFile(str(folder / name), "it is missing") from error


def damaged_in_checkpoint(storage: Storage, folder: str) -> Iterator[DamagedFile]:
    """Read the files of a checkpoint in the run, and yield those that are damaged or missing."""
    for path in storage.list(folder):
        name = path.rpartition("/")[2]
        if not (name.startswith(_CHECKSUMS.partition("{")[0]) and name.endswith(".json")):
            continue
        try:
            yield from damaged_files(storage, folder, parse_sealed(storage.read(path)))
        except ValueError as error:
            yield DamagedFile(path, f"it cannot be read ({error})")
