"""Plan an epoch and store the plan in the run: every training sample once, in training order, in whole steps."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path
from typing import Generic, TypeVar

from mpa_ray.config import Arm, LevelConfig
from mpa_ray.leveling.arms import Samples, SampleSources, samples_of
from mpa_ray.leveling.batching import TrainingRow
from mpa_ray.leveling.replay import KnownPairSelection, select_known_pairs
from mpa_ray.leveling.sampling import sample_of
from mpa_ray.leveling.shuffle import in_seeded_order
from mpa_ray.metrics.answer_types import answer_type
from mpa_ray.observability.progress import Progress
from mpa_ray.records import EpochCounts, ParitySample, Verdict
from mpa_ray.run.dataset import ShardedDataset
from mpa_ray.run.markers import shard_name
from mpa_ray.run.run import Run

T = TypeVar("T")
PromptT = TypeVar("PromptT", Verdict, ParitySample)

IsPromptable = Callable[[ParitySample], bool]
"""Whether the student can be prompted with a sample's question: see `mpa_ray.leveling.prompts`."""

MAX_SHARD_ROWS = 4096


@dataclass(frozen=True)
class EpochPlan:
    """An epoch that is stored in the run."""

    counts: EpochCounts
    batch_size: int
    steps_per_shard: int
    samples: ShardedDataset[ParitySample]
    """The training samples, in training order."""
    held_out: tuple[TrainingRow, ...]
    """Samples whose loss decides which weights are exported."""
    retained: tuple[TrainingRow, ...]
    """Pairs that the student already answered and that are kept out of training, to measure forgetting."""

    @property
    def num_steps(self) -> int:
        return -(-self.counts.num_samples // self.batch_size)

    def steps(self, first: int, last: int) -> Iterator[tuple[TrainingRow, ...]]:
        """Yield the rows of each step from `first` up to, but not including, `last`. One shard is read at a time."""
        for step in range(first, min(last, self.num_steps)):
            shard, within = divmod(step, self.steps_per_shard)
            rows = _last_rows(self.samples, shard_name(shard))
            yield rows[within * self.batch_size : (within + 1) * self.batch_size]


def plan_epoch(
    run: Run,
    folder: str,
    sources: SampleSources,
    level: LevelConfig,
    arm: Arm = "parity",
    is_promptable: IsPromptable = lambda _: True,
    max_shard_rows: int = MAX_SHARD_ROWS,
) -> EpochPlan:
    """Plan an arm's epoch and store it below `folder`, or read the plan that is stored there.

    The driver's memory holds about 1/64 of the epoch's rows, the Parquet file of D_PI, and 20 bytes per known pair.

    Args:
        run: The run.
        folder: The folder of the training.
        sources: Functions that read the samples from which the arm is selected.
        level: The settings of the student's training.
        arm: The set of samples to train on.
        is_promptable: Samples for which this is false are left out and counted.
        max_shard_rows: A shard has as many whole steps as fit into this number of rows, but at least one step. It must
            be the same for all calls of a folder.
    """
    files = _EpochFiles.of(run, folder)
    path = run.manifest_path(f"{folder}/epoch")
    steps_per_shard = max(1, max_shard_rows // level.batch_size)
    if not run.storage.exists(path):
        counts = _write_epoch(files, sources, level.of_arm(arm), arm, is_promptable, steps_per_shard)
        run.write_json(path, asdict(counts))
    # The plan may come from another driver, which may have different settings.
    files.samples.check_fingerprint()
    return EpochPlan(
        counts=run.epoch_counts(folder),
        batch_size=level.batch_size,
        steps_per_shard=steps_per_shard,
        samples=files.samples,
        held_out=_rows(files.held_out, shard_name(0)),
        retained=_rows(files.retained, shard_name(0)),
    )


@dataclass(frozen=True)
class _EpochFiles:
    samples: ShardedDataset[ParitySample]
    held_out: ShardedDataset[ParitySample]
    """The held-out samples. They are stored in a single shard, and so are the retained pairs."""
    retained: ShardedDataset[ParitySample]

    @classmethod
    def of(cls, run: Run, folder: str) -> _EpochFiles:
        def dataset(name: str) -> ShardedDataset[ParitySample]:
            return run.dataset(f"{folder}/{name}", ParitySample)

        return cls(run.epoch(folder), dataset("held_out"), dataset("retained"))


def _write_epoch(
    files: _EpochFiles,
    sources: SampleSources,
    level: LevelConfig,
    arm: Arm,
    is_promptable: IsPromptable,
    steps_per_shard: int,
) -> EpochCounts:
    longest = _LongestPrompt()
    parity_types = Counter(answer_type(sample.answer) for sample in longest.over(sources.parity()))
    # If there is a labelled set to replay, no known pairs are replayed.
    known_level = level.model_copy(update={"replay_share": 0.0}) if sources.replayed is not None else level
    selection = select_known_pairs(parity_types, longest.over(sources.verdicts()), known_level)
    retained = [v.sample() for v in sources.verdicts() if selection.role(v) == "retained"]
    own = samples_of(arm, sources, level.seed, lambda v: selection.role(v) == "retained")
    num_chosen = parity_types.total() if arm == "parity" else sum(1 for _ in own())
    chosen_held_out = _held_out(sources, own, level, num_chosen)
    held_out = [longest.fill_in(sample) for sample in chosen_held_out if is_promptable(sample)]
    excluded = {sample.annotation_id for sample in (*chosen_held_out, *retained)}
    mixed_in = _Counted(_mixed_in(sources, selection, level, num_chosen, excluded))
    candidates = _Counted(chain(_without(own(), excluded), mixed_in))
    promptable = _Counted(filter(is_promptable, candidates))
    fitting = _fitting(map(longest.fill_in, promptable), level.max_tokens)
    num_samples = _write_in_order(files.samples, fitting, level.seed, steps_per_shard * level.batch_size)
    files.held_out.commit_missing(shard_name(0), held_out)
    files.retained.commit_missing(shard_name(0), retained)
    return EpochCounts(
        num_chosen=num_chosen,
        num_mixed_in=mixed_in.num,
        num_held_out=len(held_out),
        num_retained=len(retained),
        num_too_long=promptable.num - num_samples,
        num_samples=num_samples,
        num_with_special_token=len(chosen_held_out) - len(held_out) + candidates.num - promptable.num,
    )


def _held_out(sources: SampleSources, own: Samples, level: LevelConfig, num_chosen: int) -> list[ParitySample]:
    if level.holdout is None:
        return []
    if sources.held_out is not None:
        return sample_of(sources.held_out(), level.holdout.max_samples, level.seed, "held out")
    num = min(level.holdout.max_samples, round(level.holdout.share * num_chosen))
    return sample_of(own(), num, level.seed, "held out")


def _mixed_in(
    sources: SampleSources, selection: KnownPairSelection, level: LevelConfig, num_chosen: int, excluded: set[str]
) -> Iterator[ParitySample]:
    """The samples that are trained on in addition to the arm's own."""
    yield from (v.sample() for v in sources.verdicts() if selection.role(v) == "trained")
    if sources.replayed is not None:
        num = round(level.replay_share * num_chosen)
        yield from sample_of(_without(sources.replayed(), excluded), num, level.seed, "replayed")


def _without(samples: Iterable[ParitySample], excluded: set[str]) -> Iterator[ParitySample]:
    return (sample for sample in samples if sample.annotation_id not in excluded)


def _fitting(samples: Iterable[ParitySample], max_tokens: int | None) -> Iterator[ParitySample]:
    return (s for s in samples if max_tokens is None or TrainingRow.of(s).num_tokens <= max_tokens)


def _write_in_order(
    dataset: ShardedDataset[ParitySample], samples: Iterable[ParitySample], seed: int, rows_per_shard: int
) -> int:
    """Shuffle the samples, commit them in shards, and count them."""
    num_samples = num_shards = 0
    label = f"training samples of {dataset.folder.removesuffix('/epoch')}"
    with tempfile.TemporaryDirectory() as scratch, Progress(label, None, "samples") as progress:
        ordered = in_seeded_order(samples, seed, Path(scratch))
        while rows := list(islice(ordered, rows_per_shard)):
            dataset.commit_missing(shard_name(num_shards), rows)
            num_samples += len(rows)
            num_shards += 1
            progress.advance(len(rows))
    return num_samples


class _LongestPrompt:
    """Measures the longest prompt. This length is assumed for samples of labelled sets, which were never prompted."""

    def __init__(self) -> None:
        self._num_tokens = 0

    def over(self, rows: Iterable[PromptT]) -> Iterator[PromptT]:
        """Yield the rows unchanged, and measure their prompts."""
        for row in rows:
            self._num_tokens = max(self._num_tokens, row.num_prompt_tokens)
            yield row

    def fill_in(self, sample: ParitySample) -> ParitySample:
        return sample if sample.num_prompt_tokens else replace(sample, num_prompt_tokens=self._num_tokens)


class _Counted(Generic[T]):
    """Counts rows as they are read."""

    def __init__(self, rows: Iterable[T]) -> None:
        self._rows = rows
        self.num = 0

    def __iter__(self) -> Iterator[T]:
        for row in self._rows:
            self.num += 1
            yield row


def _rows(samples: ShardedDataset[ParitySample], shard: str) -> tuple[TrainingRow, ...]:
    return tuple(map(TrainingRow.of, samples.read(shard)))


_last_rows = lru_cache(maxsize=1)(_rows)
"""`_rows`, with the last shard cached, since consecutive steps are usually in the same shard."""
