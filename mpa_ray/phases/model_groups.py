"""Helpers for phases with several models: shared engines, one model under several names, and errors of some models."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from mpa_ray.config import ModelConfig
from mpa_ray.engine.protocol import VisionLanguageModel
from mpa_ray.errors import AccessLost, ConfigError, FingerprintMismatch, RunError, Unfinished, may_pass
from mpa_ray.models.shared_engines import EngineGroup
from mpa_ray.observability.progress import Progress, say
from mpa_ray.records import OutcomeT, RowT
from mpa_ray.run.dataset import ShardedDataset, ShardTarget
from mpa_ray.run.fingerprint_changes import Fingerprint
from mpa_ray.run.joined_datasets import Dataset, DatasetsOfModels
from mpa_ray.run.prefetch import prefetch
from mpa_ray.run.run import Run
from mpa_ray.stages.image_work import Stage
from mpa_ray.stages.multi_model import build_multi_model

ModelT = TypeVar("ModelT", bound=ModelConfig)

_NUM_LISTED = 4


def run_all_collect_errors(calls: Mapping[str, Callable[[], None]]) -> None:
    """Make all calls, even if some fail.

    Raises:
        AccessLost: a call lost access to a store. No further call is made.
        ConfigError, RunError: the error of a call, if only one call failed or if all errors have the same message.
        Unfinished: calls failed with different messages, and all errors may be temporary.
        RunError: calls failed with different messages, and not all errors are temporary.
    """
    failures: dict[str, ConfigError | RunError] = {}
    for name, call in calls.items():
        try:
            call()
        except AccessLost:
            # The other calls would fail, too.
            raise
        except (ConfigError, RunError) as error:
            failures[name] = error
    if len({str(error) for error in failures.values()}) == 1:
        raise next(iter(failures.values()))
    if failures:
        details = "; ".join(f"{name}: {error}" for name, error in failures.items())
        is_unfinished = all(isinstance(error, Unfinished) or may_pass(error) for error in failures.values())
        raise Unfinished(details) if is_unfinished else RunError(details)


def dedupe_by_fingerprint(
    models: Mapping[str, ModelT], fingerprint_of: Callable[[ModelT], Fingerprint]
) -> dict[str, ModelT]:
    """The models by name. Of several models with the same fingerprint, only the first is returned."""
    fingerprints: list[Fingerprint] = []
    unique: dict[str, ModelT] = {}
    for name, model in models.items():
        if (fingerprint := fingerprint_of(model)) not in fingerprints:
            fingerprints.append(fingerprint)
            unique[name] = model
    return unique


@contextmanager
def fall_back_to_single(group: EngineGroup, passed_on: Callable[[], object] = lambda: None) -> Iterator[None]:
    """If a shared engine fails in the block, warn and let each model continue alone, since one model may be the cause.

    Args:
        group: The models that share the engine.
        passed_on: Returns an error that no model has caused, or None. This error is raised again if the block raises
            it.

    Raises:
        ConfigError, RunError: the block's error, if the group has only one model, if `passed_on` returns the error, or
            if it is an `Unfinished`.
    """
    try:
        yield
    except Unfinished:
        # An error that may be temporary is not the fault of a model.
        raise
    except (ConfigError, RunError) as error:
        if error is passed_on() or len(group.names) == 1:
            raise
        say(f"WARNING: the engine shared by {list_names(group.names)} failed: {error} Each model continues alone.")


def list_names(names: Sequence[str]) -> str:
    """The first few names, and the number of the other names."""
    more = f" and {len(names) - _NUM_LISTED} more" if len(names) > _NUM_LISTED else ""
    return ", ".join(names[:_NUM_LISTED]) + more


def copy_same_model_rows(
    run: Run,
    label: str,
    dataset: ShardedDataset[RowT],
    others: Mapping[str, ShardedDataset[RowT]],
    fingerprint: Fingerprint,
    shards: Sequence[str],
) -> None:
    """Copy rows that the same model has under another name, so that the model does not answer again.

    Args:
        run: The run.
        label: The name of the phase on the terminal.
        dataset: The dataset in which rows are missing.
        others: The datasets of the same model, by its other names.
        fingerprint: The settings that the dataset depends on.
        shards: All shards that the dataset should have.
    """
    for name, other in others.items():
        missing = dataset.markers.without_marker(shards)
        available = set(missing) - set(other.missing(missing))
        try:
            # Check after the rows are listed: another command may have just committed them, with other settings.
            run.check_fingerprint(other.folder, fingerprint)
        except FingerprintMismatch:
            # The phase of the other model reports this error.
            continue
        if available:
            with Progress(f"{label}, as {name}", len(available), "shards") as progress:
                for _ in prefetch(partial(_copy_shard, dataset, other), sorted(available)):
                    progress.advance(1)


def _copy_shard(dataset: ShardedDataset[RowT], other: ShardedDataset[RowT], shard: str) -> None:
    commit, rows = other.read_commit(shard)
    dataset.commit(shard, rows, source_generation=commit.source_generation, versions=commit.versions)


def target_of(group: EngineGroup, dataset_of: Callable[[str], Dataset[OutcomeT]]) -> ShardTarget[Any]:
    """Where a group's pass commits its rows: one dataset per model."""
    datasets = {name: dataset_of(name) for name in group.names}
    return DatasetsOfModels(datasets) if len(datasets) > 1 else next(iter(datasets.values()))


def stage_for(
    group: EngineGroup, make_stage: Callable[..., Stage[Any, Any]]
) -> Callable[[VisionLanguageModel], Stage[Any, Any]]:
    """Return the function that makes a stage around an engine. The stage asks all models of the group."""
    return partial(build_multi_model, make_stage, group.adapters) if len(group.names) > 1 else make_stage
