"""The log of a training run: the latest entries are in `training.json`, the earlier ones in files below `log/`.

An object store cannot append to a file, and writing the whole log for every entry would take quadratic time.
"""

from __future__ import annotations

import json
import logging
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any

from mpa_ray.run.prefetch import prefetch
from mpa_ray.run.run import Run
from mpa_ray.run.sealed_json import parse_sealed, sealed
from mpa_ray.textual import Json

logger = logging.getLogger(__name__)

FILE_ENTRIES = 100
"""The number of entries in a file of the log."""
_LEAST_LATEST = 20
"""`training.json` holds at least this many of the latest entries, or all if there are fewer: enough for a rate."""
_LOST = {"is_lost": True}
"""The only line of a file whose entries are lost."""


@dataclass(frozen=True)
class LogEntry:
    """One entry of the training's log; a field is None if the entry has no such value."""

    step: int = 0
    loss: float | None = None
    """Mean loss since the previous entry."""
    eval_loss: float | None = None
    """Loss on the held-out samples."""
    learning_rate: float | None = None
    grad_norm: float | None = None
    samples_per_s: float | None = None
    supervised_tokens_per_s: float | None = None
    tokens_per_s: float | None = None
    padding_share: float | None = None
    """Padding tokens as a share of all tokens that the model computed."""
    data_wait_share: float | None = None
    """The share of time in which rank 0 waited for data."""
    memory_gib: float | None = None
    """Memory of rank 0: the peak of its GPU, or the resident memory of its process on a CPU."""
    tflops_per_s: float | None = None
    """Floating-point operations of each worker, in 10^12 per second."""
    mfu: float | None = None
    """Model FLOPs utilization: operations as a share of the GPU's peak; None if the peak is not known."""
    other: dict[str, Any] = field(default_factory=dict)
    """Further values that transformers logs, such as `epoch`."""

    def to_json(self) -> dict[str, Json]:
        named = {name: value for name, value in vars(self).items() if name != "other" and value is not None}
        return {**named, **self.other}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> LogEntry:
        named = {name: value for name, value in content.items() if name in _LOG_FIELDS}
        return cls(**named, other={name: value for name, value in content.items() if name not in _LOG_FIELDS})


_LOG_FIELDS = {entry.name for entry in fields(LogEntry)} - {"other"}


@dataclass(frozen=True)
class TrainingLog:
    """Entries of a log, in their order."""

    entries: tuple[LogEntry, ...] = ()

    @property
    def loss_entries(self) -> tuple[LogEntry, ...]:
        """The entries with a training loss, which also hold the speed."""
        return tuple(entry for entry in self.entries if entry.loss is not None)

    @property
    def speed_entries(self) -> tuple[LogEntry, ...]:
        """The entries with a speed. If there are several, the first is left out, because it includes the warm-up."""
        measured = tuple(entry for entry in self.entries if entry.samples_per_s is not None)
        return measured[1:] or measured

    @property
    def samples_per_s(self) -> float | None:
        """The median over `speed_entries` of the rate of all workers together; None if there is no such entry."""
        rates = [entry.samples_per_s for entry in self.speed_entries if entry.samples_per_s is not None]
        return statistics.median(rates) if rates else None

    def until(self, step: int) -> TrainingLog:
        """The entries up to a step."""
        return TrainingLog(tuple(entry for entry in self.entries if entry.step <= step))


@dataclass(frozen=True)
class LogFiles:
    """The files of the log that one attempt at a training run has written."""

    attempt: int
    num_files: int = 0
    last_step: int | None = None
    """The step from which a later attempt resumed; entries of later steps in these files do not count. None if no later
    attempt has resumed."""

    def resumed_from(self, step: int) -> LogFiles:
        """The same files, after another attempt has resumed from a step."""
        return LogFiles(self.attempt, self.num_files, step if self.last_step is None else min(self.last_step, step))

    def paths(self, folder: str) -> Iterator[str]:
        return (_path(folder, self.attempt, number) for number in range(self.num_files))


def move_to_files(run: Run, folder: str, files: LogFiles, log: TrainingLog) -> tuple[LogFiles, TrainingLog]:
    """Write the oldest entries to files if they fill a whole file. Return the files and the entries that remain."""
    entries, num_files = log.entries, files.num_files
    while len(entries) >= FILE_ENTRIES + _LEAST_LATEST:
        lines = [json.dumps(sealed(entry.to_json())) + "\n" for entry in entries[:FILE_ENTRIES]]
        run.storage.write(_path(folder, files.attempt, num_files), "".join(lines).encode())
        entries, num_files = entries[FILE_ENTRIES:], num_files + 1
    return LogFiles(files.attempt, num_files, files.last_step), TrainingLog(entries)


def read_files(run: Run, folder: str, files: Sequence[LogFiles]) -> Iterator[LogEntry]:
    """Yield the entries of all files, in their order. Entries after `LogFiles.last_step` are left out."""
    last_steps = [part.last_step for part in files for _ in part.paths(folder)]
    contents = prefetch(partial(_entries_of, run), [path for part in files for path in part.paths(folder)])
    for last_step, entries in zip(last_steps, contents, strict=True):
        yield from (entry for entry in entries if last_step is None or entry.step <= last_step)


def parse_log_file(content: bytes) -> list[LogEntry]:
    """The entries in the content of a file; none if a repair has written the file. Raises ValueError for damage."""
    lines = [parse_sealed(line) for line in content.splitlines()]
    if not lines:
        raise ValueError("it is empty")
    return [] if lines == [_LOST] else [LogEntry.from_json(line) for line in lines]


def write_lost_file(run: Run, path: str) -> None:
    """Write a file without entries in the place of a damaged or missing one."""
    run.storage.write(path, (json.dumps(sealed(_LOST)) + "\n").encode())


def _entries_of(run: Run, path: str) -> list[LogEntry]:
    """The entries in a file; none if it is damaged or missing. Then only a part of the curves is lost."""
    try:
        return parse_log_file(run.storage.read(path))
    except (FileNotFoundError, ValueError) as error:
        logger.warning("%s is left out: %s", path, error)
        return []


def _path(folder: str, attempt: int, number: int) -> str:
    return f"{folder}/log/{attempt:04}-{number:06}.jsonl"
