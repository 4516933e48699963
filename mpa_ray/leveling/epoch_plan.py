"""What a student is trained on, laid out in the run: every sample once, in the order of the epoch, in whole steps."""

from __future__ import annotations

import heapq
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from mpa_ray.config import Arm, LevelConfig
from mpa_ray.leveling.arms import Samples, samples_of
from mpa_ray.leveling.batching import TrainingRow, in_seeded_order, row_of
from mpa_ray.leveling.replay import draw, sampling_key
from mpa_ray.metrics.answer_types import answer_type
from mpa_ray.observability.progress import Progress
from mpa_ray.records import EpochCounts, ParitySample, Verdict
from mpa_ray.run.dataset import ShardedDataset, shard_name
from mpa_ray.run.run import Run

_SHARD_ROWS = 4096
"""Rows of a shard, about: as many whole steps as fit."""


@dataclass(frozen=True)
class SampleSources:
    """Where the samples come from; every call goes through a source anew."""

    parity: Samples
    """D_PI."""
    verdicts: Callable[[], Iterable[Verdict]]
    """The student's, which hold the pairs that it already answers."""
    labels: Samples | None = None
    """A user's labelled set that arm `labels` trains on."""
    replayed: Samples | None = None
    """A user's labelled set to replay, in place of those pairs."""
    held_out: Samples | None = None
    """A user's labelled set to watch, in place of a part of D_PI."""


@dataclass(frozen=True)
class Plan:
    """An epoch as it lies in the run."""

    counts: EpochCounts
    batch_size: int
    samples: ShardedDataset[ParitySample]
    """In the order in which they are trained on."""
    held_out: tuple[TrainingRow, ...]
    """The loss on them chooses the weights."""
    retained: tuple[TrainingRow, ...]
    """Pairs that the student answered before training: how many of them it still answers is told."""

    @property
    def num_steps(self) -> int:
        return -(-self.counts.num_samples // self.batch_size)

    def steps(self, first: int, last: int) -> Iterator[tuple[TrainingRow, ...]]:
        """Steps from `first` up to `last`, without it; read as they are asked for."""
        per_shard = _steps_per_shard(self.batch_size)
        for step in range(first, min(last, self.num_steps)):
            shard, within = divmod(step, per_shard)
            rows = _rows(self.samples, shard_name(shard))
            yield rows[within * self.batch_size : (within + 1) * self.batch_size]


def plan_epoch(run: Run, folder: str, sources: SampleSources, level: LevelConfig, arm: Arm = "parity") -> Plan:
    """Lay an arm's epoch out below `folder`, or find it there.

    Whatever the size of D_PI, the driver holds its Parquet file and a 64th of the epoch's rows, and some 20 bytes for
    each pair that the student answers.
    """
    samples = ShardedDataset(run.storage, f"{folder}/epoch", ParitySample)
    watched = {name: ShardedDataset(run.storage, f"{folder}/{name}", ParitySample) for name in ("held_out", "retained")}
    path = f"{folder}/epoch/manifest.json"
    if not run.storage.exists(path):
        run.write_json(path, asdict(_lay_out(samples, watched, sources, level.of_arm(arm), arm)))
    counts = EpochCounts(**run.read_json(path))
    held_out, retained = (tuple(map(row_of, watched[name].read(shard_name(0)))) for name in ("held_out", "retained"))
    return Plan(counts, level.batch_size, samples, held_out, retained)


def _lay_out(
    samples: ShardedDataset[ParitySample],
    watched: dict[str, ShardedDataset[ParitySample]],
    sources: SampleSources,
    level: LevelConfig,
    arm: Arm,
) -> EpochCounts:
    longest = 0

    def judged() -> Iterator[Verdict]:
        nonlocal longest
        for verdict in sources.verdicts():
            longest = max(longest, verdict.num_prompt_tokens)
            yield verdict

    types: Counter[str] = Counter()
    for sample in sources.parity():
        types[answer_type(sample.answer)] += 1
        longest = max(longest, sample.num_prompt_tokens)
    # A user's own set stands for the pairs that the student already answers.
    from_verdicts = level.model_copy(update={"replay_share": 0.0}) if sources.replayed else level
    chosen = draw(types, judged(), from_verdicts)
    retained = [v.sample() for v in sources.verdicts() if chosen.role(v) == "retained"]
    own = samples_of(
        arm,
        sources.parity,
        sources.verdicts,
        sources.labels,
        level.seed,
        lambda verdict: chosen.role(verdict) == "retained",
    )
    num_chosen = types.total() if arm == "parity" else sum(1 for _ in own())
    held_out = _held_out(sources, own, level, num_chosen)
    # A labelled set's prompts have not been measured.
    measured = [_measured(sample, longest) for sample in held_out]
    left_out = {sample.annotation_id for sample in (*held_out, *retained)}
    mixed_in = too_long = 0

    def trained() -> Iterator[ParitySample]:
        nonlocal mixed_in
        yield from (_measured(sample, longest) for sample in own() if sample.annotation_id not in left_out)
        for verdict in sources.verdicts():
            if chosen.role(verdict) == "trained":
                mixed_in += 1
                yield verdict.sample()
        if sources.replayed is not None:
            others = (sample for sample in sources.replayed() if sample.annotation_id not in left_out)
            for sample in _lowest(others, round(level.replay_share * num_chosen), level.seed, "replayed"):
                mixed_in += 1
                yield _measured(sample, longest)

    def fitting() -> Iterator[ParitySample]:
        nonlocal too_long
        for sample in trained():
            if level.max_tokens is not None and row_of(sample).num_tokens > level.max_tokens:
                too_long += 1
            else:
                yield sample

    num_samples = 0
    with tempfile.TemporaryDirectory() as scratch, Progress("plan the epoch", None, "samples") as progress:
        ordered = in_seeded_order(fitting(), level.seed, Path(scratch))
        size, shard = _steps_per_shard(level.batch_size) * level.batch_size, 0
        while rows := list(islice(ordered, size)):
            samples.commit(shard_name(shard), rows)
            num_samples, shard = num_samples + len(rows), shard + 1
            progress.advance(len(rows))
    watched["held_out"].commit(shard_name(0), measured)
    watched["retained"].commit(shard_name(0), retained)
    return EpochCounts(num_chosen, mixed_in, len(measured), len(retained), too_long, num_samples)


def _held_out(sources: SampleSources, own: Samples, level: LevelConfig, num_chosen: int) -> list[ParitySample]:
    if level.holdout is None:
        return []
    if sources.held_out is not None:
        return _lowest(sources.held_out(), level.holdout.max_samples, level.seed, "held out")
    count = min(level.holdout.max_samples, round(level.holdout.share * num_chosen))
    return _lowest(own(), count, level.seed, "held out")


def _lowest(samples: Iterable[ParitySample], count: int, seed: int, purpose: str) -> list[ParitySample]:
    """A random choice that does not depend on the order of the samples."""
    return heapq.nsmallest(count, samples, key=lambda sample: sampling_key(sample.annotation_id, seed, purpose))


def _measured(sample: ParitySample, longest: int) -> ParitySample:
    if sample.num_prompt_tokens:
        return sample
    fields: dict[str, Any] = {**asdict(sample), "num_prompt_tokens": longest}
    return ParitySample(**fields)


def _steps_per_shard(batch_size: int) -> int:
    return max(1, _SHARD_ROWS // batch_size)


@lru_cache(maxsize=1)
def _rows(samples: ShardedDataset[ParitySample], shard: str) -> tuple[TrainingRow, ...]:
    return tuple(map(row_of, samples.read(shard)))
