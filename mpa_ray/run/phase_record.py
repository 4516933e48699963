"""The phases of a run: their names, and the time and work that each phase has taken so far.

Each attempt at a phase adds a file to the phase's record. No file is ever changed, so the attempts of several drivers
are all counted. The record is the sum of its files, in the order of their numbers.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime
from itertools import count
from typing import Any, Literal

from mpa_ray.config import Arm
from mpa_ray.observability.rate import per_second
from mpa_ray.observability.usage import Usage
from mpa_ray.run.run import Run
from mpa_ray.textual import Json

PhaseKind = Literal["index", "annotate", "identify", "level", "check", "evaluate", "score", "report"]

PHASES = "phases"
_ARM_MARK = "@"
"""Separates a model from an arm in a file name. Names of models cannot contain this character."""
_NUMBER_MARK = "~"
"""Separates the phase from the number of the file, in all files of a record except the first. Names of models cannot
contain this character."""


@dataclass(frozen=True)
class PhaseKey:
    """Identifies a phase of a run by its kind and its model."""

    kind: PhaseKind
    model: str | None = None
    """The student; in `evaluate`, the measured model, such as `small.before`. None for phases of the whole run."""
    arm: Arm = "parity"
    """The arm that the student is trained on, in `level` and `check`."""
    benchmark: str | None = None
    """In `evaluate`, one benchmark, or None for all benchmarks."""

    @property
    def label(self) -> str:
        """The phase as users see it, such as `level small all`. Two phases never share a label."""
        words = [self.kind, self.model, self.arm if self.arm != "parity" else None]
        on = f" on {self.benchmark}" if self.benchmark is not None else ""
        return " ".join(word for word in words if word) + on

    @property
    def path(self) -> str:
        """The path of the first file of the phase's record in the run directory. It does not depend on the benchmark.

        One pass of a model answers all benchmarks, so they share a record.
        """
        model = f".{self.model}" if self.model is not None else ""
        arm = f"{_ARM_MARK}{self.arm}" if self.arm != "parity" else ""
        return f"{PHASES}/{self.kind}{model}{arm}.json"

    @classmethod
    def from_path(cls, path: str) -> PhaseKey:
        """The phase to whose record a file belongs."""
        name, _, _ = path.removeprefix(f"{PHASES}/").removesuffix(".json").partition(_NUMBER_MARK)
        head, _, arm = name.partition(_ARM_MARK)
        kind, _, model = head.partition(".")
        return cls(kind, model or None, arm or "parity")  # type: ignore[arg-type]

    @property
    def log_fields(self) -> dict[str, str]:
        """The fields that identify the phase in its log records."""
        optional = {"phase": self.kind, "student": self.model, "arm": self.arm if self.arm != "parity" else None}
        return {name: value for name, value in optional.items() if value is not None}


@dataclass(frozen=True)
class PassTotals:
    """Sums over the shards that the passes of a phase committed."""

    num_images: int
    num_images_by_models: int
    """Like `num_images`, but an image counts once for every model that was asked about it."""
    working_s: float
    """The time in which at least one engine had a shard. Starts of engines and waits for shards do not count."""
    usage: Usage

    @property
    def images_per_s(self) -> float | None:
        """Images/s as `per_second` defines it; None if no engine worked."""
        return per_second(self.num_images, self.working_s)

    def images_per_s_of(self, num_replicas: int) -> float | None:
        """Images/s per replica and model. `plan` assumes this rate for a replica that serves one model."""
        return per_second(self.num_images_by_models, self.working_s * num_replicas)

    def __add__(self, other: PassTotals) -> PassTotals:
        usage = replace(self.usage)
        usage += other.usage
        return PassTotals(
            self.num_images + other.num_images,
            self.num_images_by_models + other.num_images_by_models,
            self.working_s + other.working_s,
            usage,
        )


@dataclass(frozen=True)
class PhaseRecord:
    """The time and work that a phase has taken, summed over its attempts. An attempt that was killed does not count."""

    wall_s: float
    num_attempts: int
    totals: PassTotals | None = None
    """None for phases without a pass."""
    error: str = ""
    """Why the last attempt failed; empty if it succeeded, or if another attempt has begun since."""
    is_begun_again: bool = False
    """Whether an attempt that began after a failed one has not ended yet."""

    def __add__(self, other: PhaseRecord) -> PhaseRecord:
        """Add a later attempt. The error is that of the later attempt."""
        both = self.totals + other.totals if self.totals and other.totals else self.totals or other.totals
        return PhaseRecord(
            self.wall_s + other.wall_s,
            self.num_attempts + other.num_attempts,
            both,
            other.error,
            other.is_begun_again,
        )

    def to_json(self) -> dict[str, Json]:
        """The stored form: one flat object with numbers rounded to 3 decimals."""
        sums: dict[str, float] = {"wall_s": self.wall_s, "num_attempts": self.num_attempts}
        if self.totals is not None:
            totals = {name: value for name, value in asdict(self.totals).items() if name != "usage"}
            sums |= totals | asdict(self.totals.usage)
        rounded: dict[str, Json] = {name: round(value, 3) for name, value in sums.items()}
        shown: dict[str, Json] = {"error": self.error, "is_begun_again": self.is_begun_again}
        return rounded | {name: value for name, value in shown.items() if value}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> PhaseRecord:
        """The inverse of `to_json`."""
        totals = None
        if "num_images" in content:
            usage = Usage(**{field.name: content[field.name] for field in fields(Usage) if field.name in content})
            by_models = content.get("num_images_by_models", content["num_images"])
            totals = PassTotals(content["num_images"], by_models, content["working_s"], usage)
        wall_s, num_attempts = content.get("wall_s", 0.0), content.get("num_attempts", 0)
        return cls(wall_s, num_attempts, totals, content.get("error", ""), content.get("is_begun_again", False))


def phase_record(run: Run, key: PhaseKey) -> PhaseRecord | None:
    """The record of one phase; None if no attempt has ended."""
    return _sum_of(run, key)[0]


def phase_records(run: Run) -> Iterator[tuple[PhaseKey, PhaseRecord]]:
    """All records of a run."""
    for key in dict.fromkeys(map(PhaseKey.from_path, run.storage.list(PHASES))):
        record = phase_record(run, key)
        if record is not None:
            yield key, record


def record_times(run: Run) -> dict[str, datetime]:
    """The time at which the newest file of each record was created, by the path of the record's first file."""
    newest: dict[str, datetime] = {}
    for file in run.storage.details(PHASES):
        # Hidden files are unfinished.
        if not file.path.rpartition("/")[2].startswith("."):
            path = PhaseKey.from_path(file.path).path
            newest[path] = max(newest.get(path, file.modified), file.modified)
    return newest


def add_to_record(run: Run, key: PhaseKey, attempt: PhaseRecord) -> None:
    """Add one attempt to the phase's record. Raises CannotWrite."""
    _, number = _sum_of(run, key)
    # Without the id, two attempts might create a file with the same content, and the storage might treat the second
    # request as a repetition of the first.
    content = {**attempt.to_json(), "id": uuid.uuid4().hex}
    while not run.create_json(_path(key, number), content):
        # Another driver has added an attempt.
        number += 1


def clear_error(run: Run, key: PhaseKey) -> None:
    """If the last attempt failed, record that another attempt begins, so that the error is no longer shown."""
    before = phase_record(run, key)
    if before is not None and before.error:
        add_to_record(run, key, PhaseRecord(0.0, num_attempts=0, is_begun_again=True))


def _sum_of(run: Run, key: PhaseKey) -> tuple[PhaseRecord | None, int]:
    """The sum of a record's files, and the number of files."""
    total: PhaseRecord | None = None
    for number in count():
        try:
            attempt = PhaseRecord.from_json(run.read_json(_path(key, number)))
        except FileNotFoundError:
            return total, number
        total = attempt if total is None else total + attempt
    raise AssertionError("counting does not end")


def _path(key: PhaseKey, number: int) -> str:
    return f"{key.path.removesuffix('.json')}{_NUMBER_MARK}{number}.json" if number else key.path
