"""How many images and questions a run has."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice

from mpa_ray.config import EvaluateConfig, PlanConfig, RunConfig
from mpa_ray.corpus.index import Selection, check_first_files, check_source
from mpa_ray.corpus.places.places import Places
from mpa_ray.errors import ConfigError
from mpa_ray.run.run import Run

_QUESTIONS_PER_SHARD = 256
"""Questions per shard of a run without benchmarks, in which only the checks of exported students ask questions."""

_MAX_LISTED = 10_000
"""The largest `source.limit` up to which a plan lists the images. Longer listings may take minutes on a mount."""


@dataclass(frozen=True)
class Workload:
    """The counts on which the sizes of all phases depend."""

    num_images: int
    images_per_shard: int
    num_questions: int | None
    """Questions of all benchmarks; None if their number is not known."""
    questions_per_shard: int


def workload_of(config: RunConfig, plan: PlanConfig, run: Run, notes: list[str]) -> Workload:
    """Count images and questions: from `plan`, else from the files of the run, else from the source and the
    limits in the settings.

    Raises:
        ConfigError: the number of images is not known.
    """
    evaluate = config.evaluate
    return Workload(
        num_images=_count_images(config, plan, run, notes),
        images_per_shard=config.source.shard_size,
        num_questions=_count_questions(evaluate, plan, run, notes) if evaluate is not None else 0,
        questions_per_shard=evaluate.shard_size if evaluate is not None else _QUESTIONS_PER_SHARD,
    )


def _count_images(config: RunConfig, plan: PlanConfig, run: Run, notes: list[str]) -> int:
    if plan.num_images is not None:
        return plan.num_images
    if run.is_indexed():
        return run.manifest().num_images
    if (limit := config.source.limit) is not None:
        counted = _count_listed(config, limit, notes)
        if counted is not None:
            return counted
        notes.append(f"images: source.limit, {limit}; the source may hold fewer")
        return limit
    raise ConfigError(
        "plan.num_images",
        None,
        "is not known: nothing is indexed yet and source.limit is not set.",
        "Run mpa-ray index, which loads no model, or set plan.num_images.",
    )


def _count_listed(config: RunConfig, limit: int, notes: list[str]) -> int | None:
    """Count the images of a local source up to a limit; None if they are too many to list, or cannot be listed.

    If the source cannot be indexed, a note says why. This is no error: a plan may be made before the images exist.
    """
    if "://" in config.source.path:
        return None
    places = Places(config.object_store)
    try:
        check_source(config.source, places)
        check_first_files(config.source, places)
        if limit > _MAX_LISTED:
            return None
        return sum(1 for _ in islice(Selection(config.source, places).images(), limit))
    except ConfigError as error:
        notes.append(f"the source cannot be indexed: {error} The plan does not need it, but the other commands do.")
        return None


def _count_questions(evaluate: EvaluateConfig, plan: PlanConfig, run: Run, notes: list[str]) -> int | None:
    if plan.num_benchmark_questions is not None:
        return plan.num_benchmark_questions
    num_questions = 0
    for benchmark in evaluate.benchmarks:
        folder = run.benchmark_dir(benchmark.label)
        if run.has_manifest(folder):
            num_questions += run.questions(benchmark.label).num_rows(run.manifest(folder).shards)
        elif benchmark.limit is not None:
            num_questions += benchmark.limit
        else:
            notes.append(
                f"benchmark {benchmark.label}: not read yet, so its questions are not counted: "
                "set plan.num_benchmark_questions"
            )
            return None
    return num_questions
