"""The commands that work on a run, so that its status can show them.

A command creates a file when it begins and deletes the file when it ends. A command that is killed leaves its file.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from mpa_ray.errors import ConfigError, RunError
from mpa_ray.run.ownership import Owner
from mpa_ray.storage.storage import Storage
from mpa_ray.textual import Json, parse_json

COMMANDS = "commands"
"""The folder with a file for each command that works on the run."""
_STORAGE_ERRORS = (OSError, RunError, ConfigError)
"""Including lost access, which must not hide how the command ended."""


@dataclass(frozen=True)
class RunningCommand:
    """A command that has begun and is not known to have ended."""

    name: str
    """The command without its options, such as `mpa-ray align`."""
    begun: datetime
    process: Owner

    def to_json(self) -> dict[str, Json]:
        """Return the fields that programs need, with the time in ISO 8601."""
        begun, process = self.begun.isoformat(), self.process
        return {"name": self.name, "begun": begun, "host": process.host, "pid": process.pid}


@contextmanager
def command_recorded(storage: Storage, name: str) -> Iterator[None]:
    """Show a command in the status of the run while the block runs. An error of the storage is ignored."""
    path = f"{COMMANDS}/{uuid.uuid4().hex}.json"
    content = {"name": name, "begun": datetime.now(UTC).isoformat(), "process": asdict(Owner.this_process(0))}
    with suppress(*_STORAGE_ERRORS):
        for gone in [other for other, command in _commands(storage) if command is not None and command.process.is_gone]:
            storage.delete(gone)
        storage.write(path, json.dumps(content).encode())
    try:
        yield
    finally:
        with suppress(*_STORAGE_ERRORS):
            storage.delete(path)


def running_commands(storage: Storage) -> list[RunningCommand]:
    """The commands that have begun and are not known to have ended, the oldest first.

    A command that was killed on another machine is included, because only its own machine shows its end.
    """
    commands = [command for _, command in _commands(storage) if command is not None and not command.process.is_gone]
    return sorted(commands, key=lambda command: command.begun)


def _commands(storage: Storage) -> Iterator[tuple[str, RunningCommand | None]]:
    for path in storage.list(COMMANDS):
        try:
            content = parse_json(storage.read(path))
            begun = datetime.fromisoformat(content["begun"])
            yield path, RunningCommand(content["name"], begun, Owner(**content["process"]))
        except (FileNotFoundError, ValueError, TypeError, KeyError):
            # The command has just ended, or the file is damaged.
            yield path, None
