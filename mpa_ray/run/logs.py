"""The folder `RUN/logs`: which processes died during a run, why they died, and the ends of their logs."""

from __future__ import annotations

import json
import logging
import os
import re
import uuid
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from mpa_ray.errors import CannotWrite
from mpa_ray.observability.last_words import last_error, last_lines
from mpa_ray.observability.worker_process import WorkerProcess, num_oom_kills, read_tail
from mpa_ray.redaction import without_secrets
from mpa_ray.run.phase_record import PhaseKey
from mpa_ray.run.sealed_json import parse_sealed, sealed
from mpa_ray.storage.storage import Storage
from mpa_ray.textual import Json

logger = logging.getLogger(__name__)

FOLDER = "logs"
MAX_LOG_BYTES = 2**20
"""The largest number of bytes that are copied from the end of a log file."""
MAX_LOGS_PER_PHASE = 50
"""After this many copies in a phase, deaths are still recorded, but without a copy of the log."""
_MARK = "--"
"""Separates the parts of a record's name."""
_SECRET_NAME = re.compile(r"TOKEN|SECRET|PASSWORD|API_KEY|ACCESS_KEY|CREDENTIAL", re.IGNORECASE)
_MIN_SECRET_LENGTH = 8
_MEMORY_MONITOR = re.compile(r"memory (usage )?threshold|running low on memory|\(OOM\)", re.IGNORECASE)
_NUM_QUOTED = 2


@dataclass(frozen=True)
class Death:
    """A process that died while it worked for a run."""

    phase: str
    """The label of the phase that the process worked for."""
    process: str
    """What the process did, its process id and its host."""
    at: str
    """The time at which the death was noticed, in ISO 8601."""
    cause: str
    """The cause of the death in a few lines. If the process left an error, the cause is this error."""
    log: str | None
    """The path of the log's copy, relative to the run directory; None if no log was copied."""

    def in_words(self, run_dir: str) -> str:
        """The cause and the path of the log, without a full stop."""
        cause = self.cause.rstrip(".")
        return f"{cause} (log: {run_dir}/{self.log})" if self.log is not None else cause


@dataclass(frozen=True)
class DeathSummary:
    """The processes that died during a run."""

    num_by_phase: dict[str, int]
    """The number of deaths by the phase's label."""
    latest: list[Death]
    """The last few deaths, the latest first."""

    @property
    def total(self) -> int:
        return sum(self.num_by_phase.values())

    def to_json(self) -> dict[str, Json]:
        return {"total": self.total, **asdict(self)}


def record_death(storage: Storage, key: PhaseKey, process: WorkerProcess, error: str | None) -> Death:
    """Copy the end of a dead process's log into the run, and record why it died.

    Must be called on the node where the process ran.

    Args:
        storage: The run directory.
        key: The phase that the process worked for.
        process: The process.
        error: The cause of the death, if the process could report it. If None, the cause is looked up in the log.
    """
    tails = {path: read_tail(path, MAX_LOG_BYTES) for path in process.logs}
    cause = _redacted(error if error is not None else cause_of_silent_death(process, tails))
    at = datetime.now(UTC)
    return _written(storage, key, Death(key.label, process.name, at.isoformat(), cause, None), process, tails)


def record_lost_process(storage: Storage, key: PhaseKey, process: WorkerProcess, cause: str) -> Death:
    """Record a death without a log, because the node with the log cannot be reached."""
    death = Death(key.label, process.name, datetime.now(UTC).isoformat(), _redacted(cause), None)
    return _written(storage, key, death, process, {})


def deaths(storage: Storage, max_latest: int = 5) -> DeathSummary:
    """Return the deaths during a run. Lists all records, but reads only the latest."""
    files = [path for path in storage.list(FOLDER) if path.endswith(".json")]
    by_time = sorted(files, key=lambda path: path.rsplit(_MARK, 2)[-2:], reverse=True)
    latest = [death for path in by_time[:max_latest] if (death := _read_death(storage, path)) is not None]
    return DeathSummary(dict(Counter(_phase_of(path).label for path in files)), latest)


def _read_death(storage: Storage, path: str) -> Death | None:
    """Read a record; None if it is damaged."""
    try:
        return Death(**parse_sealed(storage.read(path)))
    except (ValueError, TypeError) as error:
        logger.warning("%s is ignored: %s", path, error)
        return None


def cause_of_silent_death(process: WorkerProcess, tails: dict[str, str]) -> str:
    """Return the cause of a death without a reported error: the error in the log, or else what other signs suggest."""
    error = next(filter(None, (last_error(tail) for tail in reversed(list(tails.values())))), None)
    if error is not None:
        return error
    before, now = process.num_oom_kills, num_oom_kills()
    if before is not None and now is not None and now > before:
        return "killed by the kernel, because the machine ran out of memory (oom_kill in /proc/vmstat has increased)."
    for path in process.logs:
        if (message := _memory_monitor_message(Path(path).parent, process.pid)) is not None:
            return f"killed by Ray, because the node ran out of memory: {message}"
    quoted = [line for tail in tails.values() for line in last_lines(tail, _NUM_QUOTED)][-_NUM_QUOTED:]
    last = " Its last lines: " + " | ".join(quoted) if quoted else " It wrote no log."
    return f"the process ended without an error, as it does after SIGKILL.{last}"


def _memory_monitor_message(folder: Path, pid: int) -> str | None:
    """Return what Ray's memory monitor wrote when it killed the process; None if the monitor did not kill it."""
    lines = read_tail(str(folder / "raylet.out"), MAX_LOG_BYTES).splitlines()
    killed = [line for line in lines if re.search(rf"\b{pid}\b", line) and _MEMORY_MONITOR.search(line)]
    return last_lines(killed[-1], 1)[0] if killed else None


def _written(storage: Storage, key: PhaseKey, death: Death, process: WorkerProcess, tails: dict[str, str]) -> Death:
    """Write the record, and the log unless the phase has `MAX_LOGS_PER_PHASE` logs.

    Errors while writing are ignored, because a full disk must not hide the cause of death.
    """
    name = _name(key, process)
    with suppress(CannotWrite, OSError):
        if any(tails.values()) and _num_logs(storage, key) < MAX_LOGS_PER_PHASE:
            log = f"{FOLDER}/{name}.log"
            storage.create(log, _redacted(_joined(tails)).encode())
            death = Death(**{**asdict(death), "log": log})
    with suppress(CannotWrite, OSError):
        storage.create(f"{FOLDER}/{name}.json", _encoded(death))
    return death


def _encoded(death: Death) -> bytes:
    return json.dumps(sealed(asdict(death)), indent=2, ensure_ascii=False).encode()


def _name(key: PhaseKey, process: WorkerProcess) -> str:
    """Return a name that no other attempt, student or process uses."""
    host = re.sub(r"[^A-Za-z0-9.]+", "-", process.host)
    time = f"{datetime.now(UTC):%Y%m%dT%H%M%S.%f}"
    return _MARK.join([_stem(key), time, f"{host}-{process.pid}-{uuid.uuid4().hex[:8]}"])


def _stem(key: PhaseKey) -> str:
    return key.path.rpartition("/")[2].removesuffix(".json")


def _phase_of(path: str) -> PhaseKey:
    return PhaseKey.from_path(path.rpartition("/")[2].rsplit(_MARK, 2)[0])


def _num_logs(storage: Storage, key: PhaseKey) -> int:
    start = f"{FOLDER}/{_stem(key)}{_MARK}"
    return sum(path.startswith(start) and path.endswith(".log") for path in storage.list(FOLDER))


def _joined(tails: dict[str, str]) -> str:
    return "".join(f"==> {path} <==\n{tail}\n" for path, tail in tails.items() if tail)


def _redacted(text: str) -> str:
    """Remove the passwords of URLs, and the values of this machine's secret environment variables, from a text."""
    for name, value in os.environ.items():
        if _SECRET_NAME.search(name) and len(value) >= _MIN_SECRET_LENGTH:
            text = text.replace(value, "***")
    return without_secrets(text)
