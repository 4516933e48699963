"""The Parity Identifier: every student answers the teacher's questions. The results are its verdicts and its D_PI."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import chain
from typing import Any

from mpa_ray.config import RunConfig, StudentConfig
from mpa_ray.errors import ConfigError
from mpa_ray.matching import matcher_of
from mpa_ray.models.shared_engines import EngineGroup, shared_engines
from mpa_ray.observability.progress import Progress, say
from mpa_ray.phases.annotate import without
from mpa_ray.phases.context import RunContext
from mpa_ray.phases.model_groups import (
    copy_same_model_rows,
    dedupe_by_fingerprint,
    fall_back_to_single,
    list_names,
    run_all_collect_errors,
    stage_for,
    target_of,
)
from mpa_ray.phases.sequence_limit import with_sequence_limit
from mpa_ray.pipeline.pass_spec import Pass
from mpa_ray.pipeline.run_pass import Admission, Outstanding, error_recorded, run_missing, run_shards
from mpa_ray.run.dataset import ShardedDataset
from mpa_ray.run.fingerprint import verdict_fingerprint
from mpa_ray.run.parity_export import export_parity
from mpa_ray.run.phase_record import PhaseKey
from mpa_ray.run.redo import Redo
from mpa_ray.stages.identify import Identify, WorthAsking
from mpa_ray.stages.judge import parity_samples

FindGroups = Callable[[RunContext[RunConfig], Sequence[StudentConfig]], list[EngineGroup]]


def engine_groups(context: RunContext[RunConfig], students: Sequence[StudentConfig]) -> list[EngineGroup]:
    """Group students by the engine that can serve them. Of students with the same model, only the first is included."""
    fingerprint_of = partial(verdict_fingerprint, context.config, context.task)
    unique = dedupe_by_fingerprint({student.name: student for student in students}, fingerprint_of)
    return shared_engines(unique, context.config.object_store)


def identify(context: RunContext[RunConfig], find_groups: FindGroups = engine_groups) -> None:
    """Write verdicts and D_PI of all students.

    First, the students that can share an engine answer together. Then each student alone answers the shards that it
    still lacks.

    Args:
        context: The run.
        find_groups: Groups students by the engine that can serve them.
    """
    config, run = context.config, context.run
    context.begin(reads=["corpus", "annotations"])
    shards = run.manifest().shards if run.is_indexed() else []
    annotated = list(without(shards, run.annotations.missing(shards)))
    for group in find_groups(context, config.students):
        if len(group.names) > 1:
            with fall_back_to_single(group):
                identify_group(context, group, annotated)
    run_all_collect_errors({s.name: partial(identify_student, context, s) for s in config.students})


def identify_student(
    context: RunContext[RunConfig], student: StudentConfig, admission: Admission = nullcontext
) -> None:
    """Write one student's verdicts and D_PI, once all images are annotated.

    Raises:
        ConfigError: some shards are not annotated yet.
        RunError: the pass failed (see `run_shards`).
    """
    with error_recorded(context.run, PhaseKey("identify", student.name)):
        _identify_student(context, student, admission)


def _identify_student(context: RunContext[RunConfig], student: StudentConfig, admission: Admission) -> None:
    config, run, task = context.config, context.run, context.task
    context.begin(writes=[run.verdicts_dir(student.name)], reads=["corpus", "annotations"])
    manifest = run.manifest()
    unannotated = run.annotations.missing(manifest.shards)
    if unannotated:
        problem = f"has {len(unannotated)} of {manifest.num_shards} shards that are not annotated."
        raise ConfigError("run_dir", run.storage.root, problem, "Run mpa-ray annotate first.")
    work = verdict_pass(context, EngineGroup.single(student.name, student))
    verdicts, fingerprint = run.verdicts(student.name), verdict_fingerprint(config, task, student)
    same_model = {
        other.name: run.verdicts(other.name)
        for other in config.students
        if other.name != student.name
        and other.model == student.model
        and verdict_fingerprint(config, task, other) == fingerprint
    }
    copy_same_model_rows(run, work.key.label, verdicts, same_model, fingerprint, manifest.shards)
    # If D_PI is not exported yet, a shared pass has probably just made the verdicts, and "already done" would mislead.
    is_exported = run.parity_version(student.name) == verdicts.version()
    outstanding = Outstanding.of(verdicts, manifest, work.redo)
    outcomes = run_missing(run, work, outstanding, admission, says_already_done=is_exported)
    context.failures.add(work.key.label, outcomes.may_pass)
    # The version is read before the rows, because another driver may change shards in the meantime.
    version = verdicts.version()
    if run.parity_version(student.name) != version:
        samples = parity_samples(verdicts.rows(manifest.shards))
        num_samples = export_parity(run, run.parity_dir(student.name), task, samples, {"verdicts": version})
        say(f"{work.key.label}: {num_samples} parity samples")


def identify_group(
    context: RunContext[RunConfig],
    group: EngineGroup,
    annotated: Iterable[str],
    admission: Admission = nullcontext,
) -> None:
    """Write the verdicts of students that share an engine, on each shard as soon as it is annotated.

    `identify_student` then processes the shards that each student still lacks, and exports its D_PI.

    Args:
        context: The run.
        group: The students that share the engine.
        annotated: The annotated shards. The iteration may wait until further shards are annotated.
        admission: See `run_shards`.

    Raises:
        ConfigError: the verdicts of a student were begun with other settings.
        RunError: the pass failed (see `run_shards`).
    """
    run = context.run
    context.begin(writes=[run.verdicts_dir(name) for name in group.names], reads=["annotations"])
    committed: dict[str, Callable[[str], bool]] = {name: run.verdicts(name).markers.has_marker for name in group.names}
    if len(group.names) > 1 and run.is_indexed():
        shards = run.manifest().shards
        # `identify_student` also makes withdrawn verdicts again.
        missing = {name: set(run.verdicts(name).markers.without_marker(shards)) for name in group.names}
        # The pass leaves out every shard that any of its students has, so leave out students that have all shards.
        group = group.only(name for name in group.names if missing[name])
        committed = {name: set(shards).difference(missing[name]).__contains__ for name in group.names}
        if len(group.names) < 2:
            return
    # After a killed run, a few shards have verdicts of only some students. `identify_student` completes these shards.
    outstanding = (shard for shard in annotated if not any(is_done(shard) for is_done in committed.values()))
    first = next(outstanding, None)
    if first is None:
        return
    progress = Progress(f"identify {list_names(group.names)}", None, "images")
    work = verdict_pass(context, group)
    outcomes = run_shards(run, work, chain([first], outstanding), (), progress, admission)
    context.failures.add(work.key.label, outcomes.may_pass)


def verdict_pass(context: RunContext[RunConfig], group: EngineGroup) -> Pass[Any]:
    """The pass of one engine's students over the annotations."""
    config, run = context.config, context.run
    matches = matcher_of(config.identify.matcher or context.task.matcher)
    worth_asking = WorthAsking(matches, config.identify.ask_where_teacher_disagrees)
    target = target_of(group, run.verdicts)
    make_stage = partial(Identify, task=context.task, answer=config.answer, worth_asking=worth_asking)
    return Pass(
        key=PhaseKey("identify", group.names[0]),
        models=group.names,
        source=run.annotations,
        target=target,
        model=with_sequence_limit(context, group.base),
        branch=run.branch_of_student(group.names[0]),
        make_stage=stage_for(group, make_stage),
        reader=context.corpus_reader,
        reading=config.reading,
        limits=config.limits,
        needs_image=worth_asking,
        adapters=group.lora_adapters,
        run_dir=run.storage.root,
        redo=Redo(target, run.annotations, context.again.reasons) if isinstance(target, ShardedDataset) else None,
        command=context.command,
    )
