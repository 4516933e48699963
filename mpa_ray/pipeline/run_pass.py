"""Passes of models over shards, from the driver's side: progress, throughput, and when to give up."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from mpa_ray.config import LimitsConfig
from mpa_ray.errors import RunError
from mpa_ray.observability.log_context import about, names_of
from mpa_ray.observability.progress import Progress, say
from mpa_ray.observability.usage import Usage
from mpa_ray.run.dataset import ShardedDataset
from mpa_ray.run.run import Manifest, Run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mpa_ray.pipeline.graph import Pass

logger = logging.getLogger(__name__)

Admission = Callable[[], AbstractContextManager[None]]


def to_nobody(_: str) -> None:
    """Announces nothing."""


@dataclass(frozen=True)
class Outstanding:
    """What is to be done of a dataset, and what is done."""

    missing: list[str]
    committed: list[str]
    num_images: int
    num_images_done: int
    """Both as if all shards held as many."""

    @classmethod
    def of(cls, dataset: ShardedDataset[Any], manifest: Manifest) -> Outstanding:
        """Of the manifest's shards those that the dataset has, and those that it lacks."""
        missing = dataset.missing(manifest.shards)
        left = set(missing)
        committed = [shard for shard in manifest.shards if shard not in left]
        done = manifest.num_images * len(committed) // manifest.num_shards
        return cls(missing, committed, manifest.num_images, done)

    def below(self, part: str) -> Outstanding:
        """The same with shards named as `JoinedDatasets` names them."""
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
    label: str,
    limits: LimitsConfig,
    make_pass: Callable[[Any], Pass[Any]],
    outstanding: Outstanding,
    admission: Admission = nullcontext,
    announce: Callable[[str], None] = to_nobody,
) -> None:
    """Make a pass over the shards that are missing. Raises as `run_shards` does."""
    if not outstanding.missing:
        say(f"{label}: already done")
        for shard in outstanding.committed:
            announce(shard)
        return
    run.check_room(outstanding.num_images - outstanding.num_images_done)
    progress = Progress(label, outstanding.num_images, "images", outstanding.num_images_done)
    run_shards(run, label, limits, make_pass, outstanding.missing, outstanding.committed, progress, admission, announce)


def run_shards(
    run: Run,
    label: str,
    limits: LimitsConfig,
    make_pass: Callable[[Any], Pass[Any]],
    shards: Iterable[str],
    committed: Sequence[str],
    progress: Progress,
    admission: Admission = nullcontext,
    announce: Callable[[str], None] = to_nobody,
) -> None:
    """Make a pass over shards, which may become known over time; `make_pass` takes the module `mpa_ray.pipeline.graph`.

    Args:
        run: To which it belongs.
        label: Names it to the user.
        limits: On failures.
        make_pass: See there.
        shards: Those to do.
        committed: Those that are done.
        progress: Counts images.
        admission: Is entered before any engine starts, and left when all have ended.
        announce: Is told of each shard that is done, once the pass is admitted: what follows must not take its place.

    Raises:
        RunError: too many images failed, or engines died too often.
    """
    # Ray takes a second to import, and a step that is done needs none of it.
    from mpa_ray.pipeline import graph as flow

    flow.start_ray()
    work = make_pass(flow)
    guard, throughput = FailureGuard(limits), Throughput(work.num_models)
    with admission(), timed(run, label, throughput, work.names), progress:
        for done in committed:
            announce(done)
        for shard in flow.run_pass(work, shards, committed):
            progress.advance(shard.num_images)
            throughput.count(shard.num_images, shard.visit_s, shard.effort)
            guard.count(shard.num_images, shard.failed)
            announce(shard.shard)


class FailureGuard:
    """Stops a run whose images mostly fail, saying what fails most."""

    def __init__(self, limits: LimitsConfig) -> None:
        self._limits = limits
        self._num_images = 0
        self._failed: Counter[str] = Counter()

    def count(self, num_images: int, failed_images: Counter[str]) -> None:
        """Raises RunError once the share of failed images is over the limit."""
        self._num_images += num_images
        self._failed.update(failed_images)
        failed = self._failed.total()
        if self._num_images >= self._limits.min_images and failed > self._limits.max_failed_rate * self._num_images:
            top = ", ".join(f"{reason}: {n}" for reason, n in self._failed.most_common(3))
            raise RunError(
                f"{failed} of {self._num_images} images failed, more than limits.max_failed_rate = "
                f"{self._limits.max_failed_rate} ({top})."
            )


class Throughput:
    """Images of a pass over the seconds in which its engines were at work: without their start and waits for shards."""

    def __init__(self, num_models: int = 1) -> None:
        """Of a pass that asks so many models about each image."""
        self._num_models = num_models
        self._num_images = 0
        self._at_work: list[tuple[float, float]] = []
        """When shards were with engines, in order: spans that do not meet, for shards may come with long pauses."""
        self._effort = Usage()

    def count(self, num_images: int, visit_s: float, effort: Usage) -> None:
        """A shard is done that was so long with an engine."""
        end = time.monotonic()
        begin = end - visit_s
        while self._at_work and self._at_work[-1][1] >= begin:
            begin = min(begin, self._at_work.pop()[0])
        self._at_work.append((begin, end))
        self._num_images += num_images
        self._effort += effort

    def record(self) -> dict[str, float]:
        """Numbers that may be added to those of other attempts."""
        working_s = sum(end - begin for begin, end in self._at_work)
        asked = {"num_images": self._num_images, "num_images_by_models": self._num_images * self._num_models}
        return {**asked, "working_s": working_s, **asdict(self._effort)}


@contextmanager
def timed(
    run: Run, label: str, throughput: Throughput | None = None, names: Mapping[str, str] | None = None
) -> Iterator[None]:
    """Add what a step took to the run's record, over all attempts; what is logged meanwhile names run and step, as the
    label does or as `names`."""
    with about(**(names or {"run": run.storage.root, **names_of(label)})):
        logger.info("begins")
        started = time.monotonic()
        try:
            yield
        finally:
            wall_s = time.monotonic() - started
            logger.info("ends", extra={"wall_s": round(wall_s, 3)})
            _add_to_record(
                run, label, {"wall_s": wall_s, "num_attempts": 1, **(throughput.record() if throughput else {})}
            )


def _add_to_record(run: Run, label: str, now: Mapping[str, float]) -> None:
    path = f"phases/{label.replace(' ', '.')}.json"
    before = run.read_json(path) if run.storage.exists(path) else {}
    if "num_images" in before:
        before.setdefault("num_images_by_models", before["num_images"])
    run.write_json(path, {name: round(before.get(name, 0) + value, 3) for name, value in now.items()})
