"""Makes a pass in the driver, with admission, progress, throughput and a limit on failed images."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from typing import Any

from mpa_ray.config import LimitsConfig
from mpa_ray.errors import CannotWrite, ConfigError, RunError
from mpa_ray.observability.last_words import in_words
from mpa_ray.observability.log_context import log_context
from mpa_ray.observability.progress import Progress, say
from mpa_ray.observability.usage import Usage
from mpa_ray.pipeline.pass_outcomes import PassOutcomes
from mpa_ray.pipeline.pass_spec import Pass, ShardDone, ShardLeft
from mpa_ray.redaction import without_secrets
from mpa_ray.run.dataset import ShardedDataset
from mpa_ray.run.manifest import Manifest
from mpa_ray.run.phase_record import PassTotals, PhaseKey, PhaseRecord, add_to_record, clear_error, phase_record
from mpa_ray.run.redo import Redo
from mpa_ray.run.run import Run

logger = logging.getLogger(__name__)

_MAX_ERROR_LENGTH = 4000

Admission = Callable[[], AbstractContextManager[None]]
"""Makes a context manager that is entered before any engine starts and left when all engines have ended."""
Stream = Callable[[Pass[Any], Iterable[str], Sequence[str]], Generator[ShardDone | ShardLeft, None, None]]
"""Sends shards through a pass: see `mpa_ray.pipeline.graph.stream_pass`."""


def announce_to_nobody(_: str) -> None:
    """Do nothing. For passes whose shards no other pass waits for."""


@dataclass(frozen=True)
class Outstanding:
    """The shards that a dataset lacks, and the shards that it has."""

    missing: list[str] = field(default_factory=list)
    """Shards without a commit, and committed shards of which a part is redone."""
    committed: list[str] = field(default_factory=list)
    num_images: int = 0
    num_images_done: int = 0
    """An estimate: it assumes that all shards hold the same number of images."""

    @classmethod
    def of(cls, dataset: ShardedDataset[Any], manifest: Manifest, redo: Redo | None = None) -> Outstanding:
        """Compare a dataset with the shards of a manifest.

        Args:
            dataset: The dataset.
            manifest: Names all shards that the dataset should have.
            redo: Decides which committed shards are redone.
        """
        outstanding = cls.among(dataset, manifest.shards, redo)
        done = manifest.estimate_images(len(outstanding.committed))
        return replace(outstanding, num_images=manifest.num_images, num_images_done=done)

    @classmethod
    def among(cls, dataset: ShardedDataset[Any], shards: Sequence[str], redo: Redo | None = None) -> Outstanding:
        """Compare a dataset with some shards, whose sizes are not known."""
        left = set(dataset.missing(shards))
        if redo is not None:
            left.update(redo.shards([shard for shard in shards if shard not in left]))
        return cls([shard for shard in shards if shard in left], [shard for shard in shards if shard not in left])

    def below(self, part: str) -> Outstanding:
        """The same shards, under the names that they have in `JoinedDatasets`."""
        missing, committed = ([f"{part}/{shard}" for shard in shards] for shards in (self.missing, self.committed))
        return replace(self, missing=missing, committed=committed)

    def __add__(self, other: Outstanding) -> Outstanding:
        return Outstanding(
            self.missing + other.missing,
            self.committed + other.committed,
            self.num_images + other.num_images,
            self.num_images_done + other.num_images_done,
        )


def run_missing(
    run: Run,
    work: Pass[Any],
    outstanding: Outstanding,
    admission: Admission = nullcontext,
    announce: Callable[[str], None] = announce_to_nobody,
    stream: Stream | None = None,
    says_already_done: bool = True,
) -> PassOutcomes:
    """Make a pass over the missing shards.

    Args:
        run: The run that the pass belongs to.
        work: The pass.
        outstanding: The missing and the committed shards.
        admission: See `run_shards`. It is not called if no shard is missing.
        announce: Called with each shard that is done; see `run_shards`.
        stream: See `run_shards`.
        says_already_done: Print a line if no shard is missing.

    Raises:
        RunError: as in `run_shards`.
    """
    label = work.key.label
    # Checked after the committed shards were listed: another command may have committed the dataset's first shard
    # while they were listed.
    work.target.check_fingerprint()
    if not outstanding.missing:
        if says_already_done:
            say(f"{label}: already done")
        for shard in outstanding.committed:
            announce(shard)
        return PassOutcomes()
    run.check_free_space(outstanding.num_images - outstanding.num_images_done)
    progress = Progress(label, outstanding.num_images, "images", outstanding.num_images_done)
    return run_shards(run, work, outstanding.missing, outstanding.committed, progress, admission, announce, stream)


def run_shards(
    run: Run,
    work: Pass[Any],
    shards: Iterable[str],
    committed: Sequence[str],
    progress: Progress,
    admission: Admission = nullcontext,
    announce: Callable[[str], None] = announce_to_nobody,
    stream: Stream | None = None,
) -> PassOutcomes:
    """Make a pass over shards, which may become known over time.

    Args:
        run: The run that the pass belongs to.
        work: The pass.
        shards: The shards to do.
        committed: The shards that are done.
        progress: Counts images.
        admission: See `Admission`.
        announce: Called with each shard that is done, but not before the pass is admitted: otherwise a pass that needs
            these shards could be admitted before this pass.
        stream: Sends the shards through the pass; by default `stream_pass`, on Ray.

    Returns:
        The outcomes of the images.

    Raises:
        FingerprintMismatch: another command has committed rows that were made with other settings.
        RunError: too many images failed, or engines died too often.
        Unfinished: shards are left for the next run of the command, because images could not be read.
    """
    work.target.check_fingerprint()
    stream = stream or _start_ray_stream()
    totals, outcomes = Throughput(num_models=len(work.models)), PassOutcomes()
    with (
        admission(),
        recorded(run, work.key, totals, work.log_fields),
        progress,
        closing(stream(work, shards, committed)) as finished,
    ):
        for shard in committed:
            announce(shard)
        follow(finished, work, progress, totals, outcomes, announce)
    say(outcomes.line(work.key.label))
    outcomes.check_complete(work.key.label)
    return outcomes


def _start_ray_stream() -> Stream:
    # Imported here, because importing Ray takes a second and a finished phase does not need it.
    from mpa_ray.pipeline.cluster import start_ray
    from mpa_ray.pipeline.graph import stream_pass

    start_ray()
    return stream_pass


def follow(
    finished: Iterable[ShardDone | ShardLeft],
    work: Pass[Any],
    progress: Progress,
    totals: Throughput,
    outcomes: PassOutcomes,
    announce: Callable[[str], None] = announce_to_nobody,
) -> None:
    """Count shards as they finish, and announce each shard that is committed.

    Raises:
        RunError: too many images have failed.
        Unfinished: too many images could not be read this time.
    """
    guard = FailureGuard(work.limits)
    for shard in finished:
        if isinstance(shard, ShardLeft):
            outcomes.leave(shard, work.limits, work.key.label)
            continue
        totals.count(shard.num_images, shard.visit_s, shard.usage)
        progress.advance(shard.num_images + shard.num_kept, totals.totals().images_per_s)
        outcomes.count(shard)
        guard.count(shard.num_images, shard.failed)
        announce(shard.shard)


class FailureGuard:
    """Stops a pass when too many of its images fail, and names the most frequent reasons."""

    def __init__(self, limits: LimitsConfig) -> None:
        self._limits = limits
        self._num_images = 0
        self._failed: Counter[str] = Counter()

    def count(self, num_images: int, failed_images: Counter[str]) -> None:
        """Count a shard. Raises RunError once the share of failed images is over the limit."""
        self._num_images += num_images
        self._failed.update(failed_images)
        failed = self._failed.total()
        if self._num_images >= self._limits.min_images and failed > self._limits.max_failed_rate * self._num_images:
            reasons = ", ".join(f"{reason}: {number}" for reason, number in self._failed.most_common(3))
            raise RunError(
                f"{failed} of {self._num_images} images failed, more than limits.max_failed_rate = "
                f"{self._limits.max_failed_rate} ({reasons})."
            )


class Throughput:
    """The images of a pass, and the seconds in which at least one of its engines had a shard.

    Starts of engines and waits for shards do not count.
    """

    def __init__(self, num_models: int = 1, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin at zero.

        Args:
            num_models: How many models are asked about each image.
            clock: Returns the time in seconds.
        """
        self._num_models, self._clock = num_models, clock
        self._num_images = 0
        self._working: list[tuple[float, float]] = []
        """Disjoint spans of time, in order, in which engines had shards. There may be long pauses between the spans."""
        self._usage = Usage()

    def count(self, num_images: int, visit_s: float, usage: Usage) -> None:
        """Add a shard that is done now and was in an engine for the last `visit_s` seconds."""
        end = self._clock()
        begin = end - visit_s
        while self._working and self._working[-1][1] >= begin:
            begin = min(begin, self._working.pop()[0])
        self._working.append((begin, end))
        self._num_images += num_images
        self._usage += usage

    def totals(self) -> PassTotals:
        """The sums so far."""
        working_s = sum(end - begin for begin, end in self._working)
        return PassTotals(self._num_images, self._num_images * self._num_models, working_s, replace(self._usage))


@contextmanager
def recorded(
    run: Run, key: PhaseKey, throughput: Throughput | None = None, log_fields: dict[str, str] | None = None
) -> Iterator[None]:
    """Add the time and the totals of an attempt to the phase's record, even if the attempt fails.

    Args:
        run: The run that the phase belongs to.
        key: The phase.
        throughput: The throughput of the phase's pass; None for a phase without a pass.
        log_fields: Fields of the log records in the block; by default the run and the phase.
    """
    with log_context(**(log_fields or {"run": run.storage.root, **key.log_fields})):
        logger.info("begins")
        clear_error(run, key)
        started = time.monotonic()
        error: BaseException | None = None
        try:
            yield
        except BaseException as raised:
            error = raised
            raise
        finally:
            wall_s = time.monotonic() - started
            logger.info("ends", extra={"wall_s": round(wall_s, 3)})
            totals = throughput.totals() if throughput is not None else None
            words = _error_in_words(error)
            if isinstance(error, GeneratorExit) and (before := phase_record(run, key)) is not None:
                # A generator that is closed late must not hide the failure that closed it.
                words = before.error
            record = PhaseRecord(wall_s, 1, totals, words)
            if error is None:
                add_to_record(run, key, record)
            else:
                _record_failure(run, key, record)


@contextmanager
def error_recorded(run: Run, key: PhaseKey) -> Iterator[None]:
    """Add an error that the block raises to the phase's record. For work whose time is not measured."""
    clear_error(run, key)
    try:
        yield
    except (ConfigError, RunError) as error:
        record_error(run, key, error)
        raise


def record_error(run: Run, key: PhaseKey, error: BaseException) -> None:
    """Add an error to the record of the phase that the error prevents or ends."""
    _record_failure(run, key, PhaseRecord(0.0, num_attempts=0, error=_error_in_words(error)))


def _record_failure(run: Run, key: PhaseKey, record: PhaseRecord) -> None:
    """Record a failed attempt, even on a disk that has just become full.

    If the record cannot be written, no error is raised, because it would hide the error of the attempt.
    """
    try:
        add_to_record(run, key, record)
    except CannotWrite:
        with suppress(CannotWrite, OSError):
            run.free_reserve()
            add_to_record(run, key, record)


def _error_in_words(error: BaseException | None) -> str:
    # A generator is closed early if other work fails. That failure is recorded where it is raised.
    if error is None or isinstance(error, GeneratorExit):
        return ""
    if isinstance(error, KeyboardInterrupt | SystemExit):
        return "interrupted"
    # The messages of errors for users are already complete sentences.
    words = str(error) if isinstance(error, ConfigError | RunError) else in_words(error)
    return without_secrets(words)[:_MAX_ERROR_LENGTH]
