"""The Pseudo Annotator: the teacher writes D_PA, and answers each of its questions a second time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial

from mpa_ray.config import RunConfig, SourceConfig
from mpa_ray.corpus.index import index_shards
from mpa_ray.corpus.places.places import Places
from mpa_ray.observability.progress import Progress
from mpa_ray.phases.context import RunContext
from mpa_ray.phases.index import INDEX, index, report_corpus
from mpa_ray.phases.sequence_limit import with_sequence_limit
from mpa_ray.pipeline.pass_spec import Pass
from mpa_ray.pipeline.run_pass import Admission, Outstanding, announce_to_nobody, recorded, run_missing, run_shards
from mpa_ray.records import Annotation
from mpa_ray.run.phase_record import PhaseKey
from mpa_ray.run.redo import Redo
from mpa_ray.run.run import Run
from mpa_ray.stages.annotate import Annotate

ListShards = Callable[[SourceConfig, Run, Places], Iterator[str]]


def annotate(
    context: RunContext[RunConfig],
    admission: Admission = nullcontext,
    announce: Callable[[str], None] = announce_to_nobody,
) -> None:
    """Annotate the images of an indexed corpus.

    Args:
        context: The run.
        admission: See `run_shards`.
        announce: Called with each annotated shard.
    """
    context.begin(writes=["annotations"], reads=["corpus"])
    work = annotation_pass(context)
    outstanding = Outstanding.of(context.run.annotations, context.run.manifest(), work.redo)
    outcomes = run_missing(context.run, work, outstanding, admission, announce)
    context.failures.add(work.key.label, outcomes.may_pass)


def index_and_annotate(
    context: RunContext[RunConfig],
    admission: Admission = nullcontext,
    announce: Callable[[str], None] = announce_to_nobody,
    list_shards: ListShards = index_shards,
) -> None:
    """Index and annotate at the same time: the teacher works while the source is still being listed.

    Args:
        context: The run.
        admission: See `run_shards`.
        announce: Called with each annotated shard.
        list_shards: Writes the corpus manifest, and yields each shard as soon as it can be read.
    """
    run = context.run
    context.begin(writes=["corpus", "annotations"])
    if run.is_indexed():
        index(context)
        annotate(context, admission, announce)
        return
    work, indexed = annotation_pass(context), run.corpus.markers.leading()
    outstanding = Outstanding.among(run.annotations, indexed, work.redo)
    missing, committed = outstanding.missing, outstanding.committed
    progress = Progress("annotate", None, "images", run.corpus.num_rows(committed))

    def shards() -> Iterator[str]:
        yield from missing
        with recorded(run, INDEX):
            yield from without(list_shards(context.config.source, run, context.places), indexed)
        manifest = run.manifest()
        report_corpus(manifest)
        progress.expect(manifest.num_images)

    outcomes = run_shards(run, work, shards(), committed, progress, admission, announce)
    context.failures.add(work.key.label, outcomes.may_pass)


def annotation_pass(context: RunContext[RunConfig]) -> Pass[Annotation]:
    """The teacher's pass over the corpus."""
    config, run = context.config, context.run
    return Pass(
        key=PhaseKey("annotate"),
        models=("teacher",),
        source=run.corpus,
        target=run.annotations,
        model=with_sequence_limit(context, config.teacher),
        branch="teacher",
        make_stage=partial(Annotate, task=context.task, config=config.annotate, answer=config.answer),
        reader=context.corpus_reader,
        reading=config.reading,
        limits=config.limits,
        deduplicated=run.annotations if config.source.skip_duplicates else None,
        run_dir=run.storage.root,
        redo=Redo(run.annotations, run.corpus, context.again.reasons),
        command=context.command,
    )


def without(shards: Iterable[str], others: Sequence[str]) -> Iterator[str]:
    """The shards that are not in `others`, in their order."""
    left_out = set(others)
    return (shard for shard in shards if shard not in left_out)
