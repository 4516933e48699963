"""Ownership of work that only one command at a time may do, such as training a student.

Each owner has a number, one more than that of the previous owner, and creates a file with this number. Every few
seconds, the owner also changes a second file, its heartbeat. Another command may become the next owner in three cases:

- The owner has ended its work.
- The other command runs on the same machine, and the owner's process is gone.
- The heartbeat has not changed for `LAPSE_S` seconds. The other command measures this time with its own clock, so the
  clocks of two machines are never compared.

If the owner was only slow, it finds the file of the next owner before it writes anything else.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from itertools import count, takewhile
from pathlib import Path

from mpa_ray.errors import CannotWrite, Unfinished
from mpa_ray.observability.progress import say
from mpa_ray.run.sealed_json import parse_sealed, sealed
from mpa_ray.storage.storage import Storage

logger = logging.getLogger(__name__)

LAPSE_S = 30.0
"""If the heartbeat does not change for this long, another command may take over the work."""
BEAT_S = 5.0
_POLL_S = 2.0
_ENDED = b"ended"


class LostOwnership(Unfinished):
    """Another command has taken over the work."""


@dataclass(frozen=True)
class Owner:
    """A command that owns, or owned, some work."""

    number: int
    host: str
    pid: int
    process: str = ""
    """Identifies the process among all processes of all machines; "" if the system does not show the necessary data."""
    token: str = ""
    """Different for every owner. If two commands created a file with the same content, the storage might treat the
    second request as a repetition of the first."""

    @classmethod
    def this_process(cls, number: int) -> Owner:
        return cls(number, socket.gethostname(), os.getpid(), _identity(os.getpid()), uuid.uuid4().hex)

    @classmethod
    def unknown(cls, number: int) -> Owner:
        """An owner whose file is damaged. It is assumed to run on another machine, so only its heartbeat matters."""
        return cls(number, "", 0)

    @classmethod
    def from_json(cls, content: bytes) -> Owner:
        """Read the file of an owner. Fields that another version has added are ignored.

        Raises:
            ValueError: the file is damaged.
        """
        known = {known.name for known in fields(cls)}
        try:
            return cls(**{name: value for name, value in parse_sealed(content).items() if name in known})
        except TypeError as error:
            raise ValueError(str(error)) from error

    def to_json(self) -> bytes:
        """The content of the file of this owner."""
        return json.dumps(sealed(asdict(self))).encode()

    @property
    def is_gone(self) -> bool:
        """Whether the process is known to have ended. This is only known on the machine on which the process ran."""
        system, _, pid = self.process.rpartition("/")[0].rpartition("/")
        return bool(system) and pid.isdecimal() and system == _system() and _identity(int(pid)) != self.process

    def __str__(self) -> str:
        return f"{self.host} (process {self.pid})" if self.host else "a command whose record is damaged"


@dataclass(frozen=True)
class Ownership:
    """The right to do the work in a folder. It can be sent to other processes."""

    storage: Storage
    folder: str
    number: int

    def check(self) -> None:
        """Check that no other command owns the work now. Call this before every write that could harm the next owner.

        Raises:
            LostOwnership: another command owns the work now.
        """
        if self.storage.exists(_owner_path(self.folder, self.number + 1)):
            owner = newest_owner(self.storage, self.folder)
            raise LostOwnership(
                f"{owner} has taken over {self.storage.root}/{self.folder}, because this command did not respond for "
                f"{LAPSE_S:.0f} seconds. Nothing is lost: the same command, run again, waits for the other one."
            )


def newest_owner(storage: Storage, folder: str) -> Owner | None:
    """The last owner of the work in a folder; None if there was none."""
    numbers = takewhile(lambda number: storage.exists(_owner_path(folder, number)), count(1))
    number = max(numbers, default=0)
    if not number:
        return None
    path = _owner_path(folder, number)
    try:
        return Owner.from_json(storage.read(path))
    except ValueError as error:
        logger.warning("%s is damaged: %s", path, error)
        return Owner.unknown(number)


def write_unknown_owner(storage: Storage, path: str) -> None:
    """Write the file of an unknown owner in the place of a damaged or missing file."""
    storage.write(path, Owner.unknown(int(Path(path).stem)).to_json())


def owner_files(storage: Storage, folder: str) -> list[str]:
    """The paths of the files of all owners of the work in a folder, including missing files before the last one."""
    paths = map(Path, storage.list(f"{folder}/owners"))
    numbers = [int(path.stem) for path in paths if path.suffix == ".json" and path.stem.isdecimal()]
    return [_owner_path(folder, number) for number in range(1, max(numbers, default=0) + 1)]


@contextmanager
def owned(
    storage: Storage,
    folder: str,
    label: str,
    while_waiting: Callable[[], object] = lambda: None,
    beat_s: float = BEAT_S,
) -> Iterator[Ownership]:
    """Own the work in a folder during the block. Waits, with a line on the terminal, while another command owns it.

    Args:
        storage: The storage of the run.
        folder: The folder of the work.
        label: The name of the work on the terminal.
        while_waiting: Called every few seconds during the wait. If it raises an error, the wait ends with this error.
        beat_s: The seconds between two changes of the heartbeat.

    Raises:
        CannotWrite: the files of the owner cannot be written.
    """
    ownership = take(storage, folder, label, while_waiting)
    is_over = threading.Event()
    thread = threading.Thread(target=_keep_beating, args=(ownership, is_over, beat_s), daemon=True)
    thread.start()
    try:
        yield ownership
    finally:
        is_over.set()
        thread.join()
        _beat(ownership, _ENDED)


def take(
    storage: Storage,
    folder: str,
    label: str,
    while_waiting: Callable[[], object] = lambda: None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Ownership:
    """Become the next owner of the work in a folder as soon as this is allowed.

    Args:
        storage: The storage of the run.
        folder: The folder of the work.
        label: The name of the work on the terminal.
        while_waiting: See `owned`.
        clock: Returns the time of this process in seconds.
        sleep: Waits for some seconds.
    """
    last: tuple[int, bytes] | None = None
    unchanged_since = clock()
    while True:
        owner = newest_owner(storage, folder)
        if owner is not None:
            beat = (owner.number, _read_beat(storage, folder, owner.number))
            if beat != last:
                if last is None or last[0] != owner.number:
                    _say_waits(owner, beat[1], label)
                last, unchanged_since = beat, clock()
            if beat[1] != _ENDED and not owner.is_gone and clock() - unchanged_since < LAPSE_S:
                while_waiting()
                sleep(_POLL_S)
                continue
        number = owner.number + 1 if owner is not None else 1
        # If another command is faster, the loop continues with that command as the owner.
        if storage.create(_owner_path(folder, number), Owner.this_process(number).to_json()):
            return Ownership(storage, folder, number)


def _say_waits(owner: Owner, beat: bytes, label: str) -> None:
    if beat != _ENDED and not owner.is_gone:
        say(f"{label}: {owner} is working on this; waiting until it ends or stops responding for {LAPSE_S:.0f} seconds")


def _keep_beating(ownership: Ownership, is_over: threading.Event, beat_s: float) -> None:
    for number in count():
        _beat(ownership, str(number).encode())
        if is_over.wait(beat_s):
            return


def _beat(ownership: Ownership, content: bytes) -> None:
    try:
        ownership.storage.write(_beat_path(ownership.folder, ownership.number), content)
    except (CannotWrite, OSError) as error:
        # If these errors last, another command may take over, and `Ownership.check` then raises an error.
        logger.warning("the heartbeat of %s cannot be written: %s", ownership.folder, error)


def _read_beat(storage: Storage, folder: str, number: int) -> bytes:
    try:
        return storage.read(_beat_path(folder, number))
    except FileNotFoundError:
        return b""


def _owner_path(folder: str, number: int) -> str:
    return f"{folder}/owners/{number}.json"


def _beat_path(folder: str, number: int) -> str:
    return f"{folder}/owners/{number}.beat"


def _system() -> str:
    """Identifies the running system and the namespace of its process ids; "" if the system does not show them."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return ""


def _identity(pid: int) -> str:
    """Identifies a process by its system, id and start time; "" if the process has ended or the system hides it."""
    system = _system()
    try:
        # The name of the program, in parentheses, may contain spaces.
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except OSError:
        return ""
    started = fields[18]
    return f"{system}/{pid}/{started}" if system and state != "Z" else ""
